"""Progress of a report, which takes several steps one after the other."""

from __future__ import annotations

from collections.abc import Callable

from reallm_compiler.progress import progress_callback

OnStep = Callable[[str, str, int, int], None]
"""Called with what is done, its unit, how many are done, and of how many."""


class Steps:
    """Prints the progress of one step after the other, or nothing."""

    def __init__(self, shown: bool | None) -> None:
        self._shown = shown
        self._label: str | None = None
        self._report = progress_callback(False, "", "")

    def __call__(self, label: str, unit: str, done: int, total: int) -> None:
        """As `OnStep`."""
        if label != self._label:
            self._label = label
            self._report = progress_callback(self._shown, label, unit)
        self._report(done, total)
