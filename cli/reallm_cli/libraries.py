"""Silences the logging and progress bars of other libraries."""

from __future__ import annotations

import logging as standard
import os


def quiet_libraries() -> None:
    """Let transformers and the hub show errors only, and no progress bars of their own."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def quiet_harness(*, bars: bool) -> None:
    """The same for lm-eval; call it before anything heavy is imported.

    Args:
        bars: let its progress bars be, which are the only sign of life in a long run.
    """
    if not bars:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    standard.getLogger("lm_eval").setLevel(standard.ERROR)
    quiet_libraries()
