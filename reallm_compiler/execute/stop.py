"""Stopping in good order: the first SIGINT or SIGTERM lets the matrix under way finish.

A matrix in training stops at the end of its epoch instead, and its state is kept. A second signal
ends the process at once; what the journal holds is kept either way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from reallm_compiler.errors import CompileError


class Interrupted(CompileError):  # noqa: N818 - an interruption is no error
    """A compile was stopped by a signal; what is done is kept."""

    code = "interrupted"


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM meanwhile; outside the main thread nothing is caught."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, stop._ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
