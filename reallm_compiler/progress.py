"""`progress=` of the Python functions that take long: one convention for all of them.

    progress=True         prints progress on stderr: on a terminal and in a notebook in one line
                          that is rewritten, elsewhere (a log) in a line now and then
    progress=None         the same where someone watches, a terminal or a notebook, once it has
                          taken `PATIENCE` seconds; else nothing
    progress=function     calls `function(done, total)`, from the thread that works
    progress=False        prints nothing

The unit of `done` and `total` is each function's own: steps, bytes, windows. `total` may change.
Speed and time left are measured on what this run has done, never guessed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from reallm_compiler.numbers import duration_text, grouped, size_text

OnProgress = Callable[[int, int], None]
"""Called with `(done, total)`."""

Progress = bool | OnProgress
"""What `progress=` takes."""

LINE_SECONDS = 30.0
"""Seconds between two lines where nothing can be rewritten."""

SCREEN_SECONDS = 0.2
"""Seconds between two states of the line where it is rewritten."""

PATIENCE = 2.0
"""Seconds before progress is shown that nobody asked for."""

FIRST_SECONDS = 1.0
"""Seconds that must have been measured before a speed is shown."""

_NOTEBOOKS = ("ipykernel", "colab")
"""Packages whose streams go to a notebook: a line can be rewritten there, as on a terminal."""


def progress_callback(progress: Progress | None, label: str, unit: str) -> OnProgress:
    """The callback for the `progress=` of a function.

    Args:
        progress: what the caller gave.
        label: what is going on, such as `compile`.
        unit: the word for what is counted, such as `steps`.
    """
    if callable(progress):
        return progress
    if progress is None:
        return Lines(label, unit, patience=PATIENCE) if is_watched(sys.stderr) else _silent
    return Lines(label, unit) if progress else _silent


def is_watched(stream: TextIO) -> bool:
    """Whether a stream is a terminal or a notebook's, where a line can be rewritten."""
    packages = {kind.__module__.partition(".")[0] for kind in type(stream).__mro__}
    return stream.isatty() or not packages.isdisjoint(_NOTEBOOKS)


def pace_text(
    unit: str,
    left: float,
    fresh: float,
    seconds: float,
    speed_text: Callable[[float], str] | None = None,
) -> str:
    """Speed and time left, such as `, 3.2 windows/s, 42 s left`; nothing as long as none is known.

    Args:
        unit: the word for what is counted.
        left: how much is to do.
        fresh: how much was done in `seconds`.
        seconds: since the work began.
        speed_text: how a speed is written, given an amount per second; by the unit when None.
    """
    if fresh <= 0 or seconds < FIRST_SECONDS:
        return ""
    speed = fresh / seconds
    shown = speed_text(speed) if speed_text is not None else _speed_text(speed, unit)
    return f", {shown}, {duration_text(left / speed)} left" if left > 0 else f", {shown}"


def _speed_text(speed: float, unit: str) -> str:
    """Bytes, or things, per second; of slow things the seconds for each."""
    if unit == "bytes":
        return f"{size_text(round(speed))}/s"
    if speed < 1:
        return f"{duration_text(1 / speed)} each"
    return f"{speed:.1f} {unit}/s" if speed < 100 else f"{grouped(round(speed))} {unit}/s"


class Lines:
    """Prints progress on stderr.

    Args:
        label: what is going on, such as `compile`.
        unit: the word for what is counted, such as `steps`.
        stream: where to; stderr when None.
        patience: print nothing before so many seconds, nor at the end of what took less.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        *,
        stream: TextIO | None = None,
        patience: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._patience = patience
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
        screen = is_watched(self._stream)
        ends = done >= total and not self._ended
        if not ends and now - self._printed_at < (SCREEN_SECONDS if screen else LINE_SECONDS):
            return
        if now - self._start < self._patience:
            return
        self._printed_at = now
        shown = f"{self._label}: {grouped(done)} of {grouped(total)} {self._unit}"
        text = shown + self._time(now, done, total)
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
        """What it took, or what is left at the speed so far."""
        took = now - self._start
        if done >= total:
            return f" in {duration_text(took)}"
        return pace_text(self._unit, total - done, done - (self._first or 0), took)


def _silent(done: int, total: int) -> None:
    """Does nothing."""
