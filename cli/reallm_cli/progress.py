"""Progress of a long command: a bar on a terminal, a line now and then elsewhere.

The rate is measured, never guessed: the time left is shown after the first units of this run, and
what an interrupted run had finished does not count towards it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import grouped, size_text
from reallm_compiler.progress import pace_text
from reallm_compiler.runs.events import Checked
from reallm_compiler.system import peak_memory
from reallm_formats import Closing

LINE_SECONDS = 10.0
"""Seconds between two lines where there is no terminal."""


def peak_text() -> str:
    """The most memory that this process has held, as the end of a run's last line."""
    peak = peak_memory()
    return f", {size_text(peak)} of memory at the peak" if peak is not None else ""


class ProgressBar(Closing):
    """Progress of one long step, on stderr.

    Args:
        terminal: where to show it.
        label: what is going on, such as `compile`.
        total: number of units in all.
        unit: what is counted, such as `matrices`.
        work: amount of work in all (weights, tokens), of which the rate is taken.
        initial, initial_work: what an earlier run had finished.
        rate: how the speed is written, given work per second; by the unit when None.
        last: where there is no terminal, log when the last unit is done, however soon.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        terminal: Terminal,
        label: str,
        *,
        total: int,
        unit: str,
        work: int,
        initial: int = 0,
        initial_work: int = 0,
        rate: Callable[[float], str] | None = None,
        last: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal = terminal
        self._label = label
        self._total = total
        self._unit = unit
        self._work = work
        self._initial = initial
        self._initial_work = initial_work
        self._rate = rate
        self._logs_last = last
        self._clock = clock
        self._start = self._last_line = clock()
        self._bar = self._make_bar() if terminal.err.is_terminal else None
        self._task = (
            self._bar.add_task(label, total=max(work, 1), completed=initial_work, tail="")
            if self._bar is not None
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, work: int) -> None:
        """Set how many units and how much work are done, earlier runs included."""
        tail = self._tail(done, work)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=work, tail=tail)
            return
        now = self._clock()
        if (self._logs_last and done >= self._total) or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._terminal.log(f"{self._label}: {tail}")

    def retarget(self, done: int, total: int) -> None:
        """As `update` where one unit is one piece of work and the total comes with each call."""
        self._total = self._work = total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=max(total, 1))
        self.update(done, done)

    def _tail(self, done: int, work: int) -> str:
        shown = f"{grouped(done)} of {grouped(self._total)} {self._unit}"
        if done <= self._initial:
            return shown
        left = self._work - work if done < self._total else 0
        fresh, seconds = work - self._initial_work, self._clock() - self._start
        return shown + pace_text(self._unit, left, fresh, seconds, self._rate)

    def _make_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[tail]}", markup=False),
            console=self._terminal.err,
            transient=True,
            # Data on stdout must pass untouched while the bar stands on stderr.
            redirect_stdout=False,
            redirect_stderr=False,
        )


class Reporter(Closing):
    """Logs the events of a run on stderr, and closes its progress bar however the run ends."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bar: ProgressBar | None = None
        self._step: str | None = None

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def measure(
        self,
        label: str,
        unit: str,
        done: int,
        total: int,
        *,
        initial: int = 0,
        last: bool = False,
    ) -> None:
        """Update the progress bar of a step; another label begins another step.

        Args:
            label, unit, last: as of `ProgressBar`.
            done, total: units that are done, and of how many.
            initial: what was done when the step began.
        """
        if self._step != label or self._bar is None:
            self.end_bar()
            self._step = label
            self._bar = ProgressBar(
                self._terminal,
                label,
                total=total,
                unit=unit,
                work=total,
                initial=initial,
                initial_work=initial,
                last=last,
            ).__enter__()
        self._bar.retarget(done, total)

    def on_checked(self, event: Checked) -> None:
        """Show the re-reading of finished steps' weights, before a run is resumed."""
        label = "read the weights of finished steps again"
        self.measure(label, "steps", event.tasks_done, event.tasks)
        if event.tasks_done == event.tasks:
            self.end_bar()

    def end_bar(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class BytesReporter(Reporter):
    """Shows how many bytes are done; without a terminal a short run logs nothing."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        super().__init__(terminal)
        self._label = label

    def update(self, done: int, total: int) -> None:
        """Set that `done` of `total` bytes are done."""
        if self._bar is None:
            self._bar = ProgressBar(
                self._terminal,
                self._label,
                total=total,
                unit="bytes",
                work=total,
                last=False,
            ).__enter__()
        self._bar.update(done, done)
