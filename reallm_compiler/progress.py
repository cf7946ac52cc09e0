"""`progress=` of the Python functions that take long: one convention for all of them.

    progress=True         prints progress on stderr: on a terminal in one line that is rewritten,
                          elsewhere (a notebook, a log) in a line now and then
    progress=function     calls `function(done, total)`, from the thread that works
    progress=False        prints nothing

The unit of `done` and `total` is each function's own: steps, bytes, windows. `total` may change.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

OnProgress = Callable[[int, int], None]
"""Called with `(done, total)`."""

Progress = bool | OnProgress
"""What `progress=` takes."""

LINE_SECONDS = 30.0
"""Seconds between two lines where there is no terminal."""

SCREEN_SECONDS = 0.2
"""Seconds between two states of the line on a terminal."""


def progress_callback(progress: Progress, label: str, unit: str) -> OnProgress:
    """The callback for the `progress=` of a function.

    Args:
        progress: what the caller gave.
        label: what is going on, such as `compile`.
        unit: the word for what is counted, such as `steps`.
    """
    if callable(progress):
        return progress
    return Lines(label, unit) if progress else _silent


class Lines:
    """Prints progress on stderr.

    Args:
        label: what is going on, such as `compile`.
        unit: the word for what is counted, such as `steps`.
        stream: where to; stderr when None.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._start = self._printed_at = clock()
        self._first: int | None = None
        self._width = 0
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        """Print that `done` of `total` are done; the last call ends the line."""
        now = self._clock()
        if self._first is None:
            self._first = done
        screen = self._stream.isatty()
        ends = done >= total and not self._ended
        if not ends and now - self._printed_at < (SCREEN_SECONDS if screen else LINE_SECONDS):
            return
        self._printed_at = now
        text = f"{self._label}: {done:,} of {total:,} {self._unit}{self._time(now, done, total)}"
        if screen:
            # The cursor stays at the start, so that whatever is printed next overwrites it.
            end = "\n" if ends else "\r"
            self._stream.write(text.ljust(self._width) + end)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._width = len(text)
        self._ended = done >= total

    def _time(self, now: float, done: int, total: int) -> str:
        """What it took, or what is left at the rate so far."""
        took = now - self._start
        if done >= total:
            return f" in {_duration(took)}"
        fresh = done - (self._first or 0)
        return f", {_duration((total - done) * took / fresh)} left" if fresh > 0 else ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _silent(done: int, total: int) -> None:
    """Does nothing."""
