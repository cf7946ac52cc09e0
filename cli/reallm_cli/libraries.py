"""Other libraries' talk, kept off the screen: what reaches the user is ours to say."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Let transformers and the hub show errors only, and no progress bars of their own."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
