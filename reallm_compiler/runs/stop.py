"""Orderly stop: the first SIGINT or SIGTERM lets the task under way finish.

A task that trains stops at the end of its epoch instead, and its state is kept. A second signal
ends the process at once, and so does the first while nothing is being written; what the journal
holds is kept either way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from reallm_compiler.errors import CompileError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(CompileError):  # noqa: N818 - an interruption is no error
    """A run was stopped by a signal; what is done is kept."""

    code = "interrupted"


class StopRequest:
    """Whether the run was asked to stop.

    Attributes:
        requested: it was.
        urgent: it must not wait for what is under way.
        kept: there is something that the same command can go on with.
    """

    def __init__(self) -> None:
        self.requested = False
        self.urgent = False
        self.kept = False
        self._patient = True

    def at_once(self) -> AbstractContextManager[None]:
        """Meanwhile the first signal ends the run where it is, as a KeyboardInterrupt.

        For long work that writes nothing: planning, reading back, trying.
        """
        return self._set_patient(False)

    def in_order(self) -> AbstractContextManager[None]:
        """Meanwhile the first signal is a request, as it is outside of `at_once`."""
        return self._set_patient(True)

    @contextmanager
    def _set_patient(self, patient: bool) -> Iterator[None]:
        before, self._patient = self._patient, patient
        try:
            yield
        finally:
            self._patient = before

    def interrupted(self) -> Interrupted:
        """The error, with the hint how to resume."""
        if self.kept:
            return Interrupted(
                "stopped: the finished matrices are kept",
                hint="run the same command again to resume where it stopped",
            )
        return Interrupted("stopped: nothing was written", hint="run the same command again")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.urgent = self.requested or not self._patient
        self.requested = True
        if self.urgent:
            raise KeyboardInterrupt


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM meanwhile; outside the main thread nothing is caught."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block both signals meanwhile; none is lost, and they are delivered when this ends.

    A process that is started meanwhile inherits the mask, so that a signal to the whole group
    cannot end it before it has set its own handlers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
