"""Which passes a calibration makes, in which order, and what each leaves on disk for the others.

    stem          tokens -> hidden states before block 0
    forward:K     hidden states through block K
    tail          hidden states -> logits; labels drawn from the model's own prediction; gradients
    again:K       block K once more, where its outputs were not kept
    backward:K    block K again, with gradients at its outputs -> gradients at its inputs

Matrices of a block are measured in its backward pass, or in its forward pass if no gradients are
wanted; those before the blocks in the stem, by their inputs alone, and those after them in the
tail. A model whose blocks cannot be run one by one has one pass, `whole`.

Hidden states are kept before every block. Where that is too much for a disk, they are kept before
every s-th block, s about the root of the number of blocks, and made again for s blocks at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from reallm_compiler.runs.tasks import Task, TaskGraph
from reallm_formats import StatisticsEntry

STEM, TAIL, WHOLE = "stem", "tail", "whole"
FORWARD, AGAIN, BACKWARD = "forward", "again", "backward"

DISK_LIMIT = 32 * 2**30
"""Bytes of hidden states up to which those before every block are kept."""


def hidden(number: int) -> str:
    """The file of hidden states before a block; after the last one for the number of blocks."""
    return f"hidden {number}"


def gradient(number: int) -> str:
    """The file of gradients at the hidden states of the same number."""
    return f"gradient {number}"


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass.

    Attributes:
        key: of its task.
        reads: files that it needs.
        writes: the file that it makes, if any.
    """

    key: str
    reads: tuple[str, ...] = ()
    writes: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What is measured, and where.

    Attributes:
        rows: what is stored of each matrix.
        stem: the rows of matrices before the blocks.
        parts: the rows of each block.
        tail: the rows of matrices after the blocks.
        gradients: whether gradients are measured.
    """

    rows: tuple[StatisticsEntry, ...]
    stem: tuple[StatisticsEntry, ...]
    parts: tuple[tuple[StatisticsEntry, ...], ...]
    tail: tuple[StatisticsEntry, ...]
    gradients: bool

    def rows_of(self, key: str) -> tuple[StatisticsEntry, ...]:
        """The rows that a pass measures."""
        kind, _, number = key.partition(":")
        if kind == (BACKWARD if self.gradients else FORWARD):
            return self.parts[int(number)]
        return {WHOLE: self.rows, STEM: self.stem, TAIL: self.tail}.get(kind, ())


class Schedule:
    """The passes of one calibration.

    Args:
        measurement: what is measured.
        file_bytes: length of a file of hidden states.

    Attributes:
        passes: in order, each of which needs the one before.
    """

    def __init__(self, measurement: Measurement, file_bytes: int) -> None:
        self._measurement = measurement
        self._file_bytes = file_bytes
        self.passes = self._make()

    def tasks(self) -> TaskGraph:
        """The passes as tasks."""
        before: list[tuple[str, ...]] = [(), *((one.key,) for one in self.passes)]
        rows_of = self._measurement.rows_of
        return TaskGraph(
            Task(
                key=one.key,
                title=title_of(one.key),
                needs=needs,
                sections=tuple(name for row in rows_of(one.key) for name, _, _ in row.sections()),
                numel=sum(row.shape[0] * row.shape[1] for row in rows_of(one.key)),
            )
            for one, needs in zip(self.passes, before, strict=False)
        )

    def live(self, key: str) -> set[str]:
        """Files that must be there when a pass begins."""
        keys = [one.key for one in self.passes]
        return self._live(keys.index(key))

    def needed(self, done: Collection[str]) -> set[str]:
        """Files that must be there when these passes are done."""
        return self._live(sum(one.key in done for one in self.passes))

    def files(self) -> set[str]:
        """All files that are ever made."""
        return {one.writes for one in self.passes if one.writes is not None}

    def disk_bytes(self) -> int:
        """Bytes of all files that are there at once, at most, with the one that is written."""
        most = max(len(self._live(index)) for index in range(len(self.passes)))
        return (most + 1) * self._file_bytes if self.files() else 0

    def _live(self, index: int) -> set[str]:
        needed: set[str] = set()
        made: set[str] = set()
        for one in self.passes[index:]:
            needed |= set(one.reads) - made
            made |= {one.writes} if one.writes is not None else set()
        return needed

    def _make(self) -> list[Pass]:
        count, gradients = len(self._measurement.parts), self._measurement.gradients
        if not count:
            return [Pass(WHOLE)]
        passes = [Pass(STEM, (), hidden(0))]
        passes += [Pass(f"{FORWARD}:{k}", (hidden(k),), hidden(k + 1)) for k in range(count)]
        if gradients or self._measurement.tail:
            passes.append(Pass(TAIL, (hidden(count),), gradient(count) if gradients else None))
        if not gradients:
            return passes
        step = 1 if count * self._file_bytes <= DISK_LIMIT else math.isqrt(count - 1) + 1
        for first in reversed(range(0, count, step)):
            last = min(first + step, count)
            if last < count:  # those of the last blocks are still there
                passes += [
                    Pass(f"{AGAIN}:{k}", (hidden(k),), hidden(k + 1))
                    for k in range(first, last - 1)
                ]
            passes += [
                Pass(f"{BACKWARD}:{k}", (hidden(k), gradient(k + 1)), gradient(k))
                for k in reversed(range(first, last))
            ]
        return passes


def title_of(key: str) -> str:
    """A pass for people."""
    kind, _, number = key.partition(":")
    return f"{kind} pass of block {number}" if number else f"{kind} of the model"
