"""A text in shards, so that several machines measure it: each goes through all passes by itself.

The sums of a pass over each shard are kept, and added up in the order of the shards by a task of
their own, `sum:PASS`. So the bytes of the file depend on the number of shards, which is a setting,
and on nothing else. With one shard the sums are those of the passes themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from reallm_compiler.calibration.moments import sums_bytes
from reallm_compiler.calibration.schedule import Measurement, Schedule, title_of
from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.calibration.spill import Spill, hidden_bytes
from reallm_compiler.runs.tasks import Task, TaskGraph
from reallm_compiler.runs.training import StateFiles

SUM = "sum:"
"""What the key of a task begins with that adds up the sums of all shards."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of the text.

    Attributes:
        chunks: its sequences.
        before: chunks of the shards before it.
        spill: where its hidden states are kept.
    """

    chunks: Sequence[Chunk]
    before: int
    spill: Spill


def shards_of(
    chunks: Sequence[Chunk], count: int, states: StateFiles, width: int
) -> tuple[Shard, ...]:
    """The chunks in shards that follow each other, of as many chunks as can be, or one more.

    Args:
        chunks: of the text.
        count: of the shards, at most; no shard is empty.
        states: names the files of hidden states.
        width: numbers of a hidden state.
    """
    count = min(count, len(chunks))
    found = []
    for number in range(count):
        first, last = (len(chunks) * n // count for n in (number, number + 1))
        part = chunks[first:last]
        shapes = [(chunk.ids.shape[0], chunk.ids.shape[1]) for chunk in part]
        prefix = f"{number} " if count > 1 else ""
        found.append(Shard(part, first, Spill(states, shapes, width, prefix)))
    return tuple(found)


def split_key(key: str) -> tuple[str, int]:
    """The pass of a task's key, and the number of its shard."""
    name, _, number = key.partition("@")
    return name, int(number or 0)


def sums_file(key: str) -> str:
    """What the file of the sums is called that a task has left."""
    return f"sums of {key}"


class ShardedSchedule:
    """The tasks of one calibration.

    Args:
        measurement: what is measured.
        shards: of the text.
        width: numbers of a hidden state.
    """

    def __init__(self, measurement: Measurement, shards: Sequence[Shard], width: int) -> None:
        self._measurement = measurement
        self._shards = shards
        shapes = [chunk.ids.shape for shard in shards for chunk in shard.chunks]
        total = hidden_bytes([(rows, columns) for rows, columns in shapes], width)
        self.of_shard = Schedule(measurement, total)

    @property
    def sharded(self) -> bool:
        """Whether there are several shards."""
        return len(self._shards) > 1

    def tasks(self) -> TaskGraph:
        """The passes over all shards, and their sums."""
        return TaskGraph(self._tasks()) if self.sharded else self.of_shard.tasks()

    def has_files(self, done: Collection[str], states: StateFiles) -> bool:
        """Whether everything is on disk that the tasks need which are not done."""
        for number, shard in enumerate(self._shards):
            passes = {split_key(key)[0] for key in done if self._is_of(key, number)}
            if not all(shard.spill.has(name) for name in self.of_shard.needed(passes)):
                return False
        return not self.sharded or all(
            states.path(sums_file(part)).exists()
            for key in self._summed()
            if SUM + key not in done
            for part in self.parts_of(SUM + key)
            if part in done
        )

    def chunks_in(self, done: Collection[str]) -> int:
        """Chunks that have gone through these tasks, each pass counted."""
        passes = [key for key in done if not key.startswith(SUM)]
        return sum(len(self._shards[split_key(key)[1]].chunks) for key in passes)

    def parts_of(self, task: str) -> list[str]:
        """The tasks whose sums a task adds up."""
        if not task.startswith(SUM):
            return []
        return [f"{task.removeprefix(SUM)}@{number}" for number in range(len(self._shards))]

    def disk_bytes(self) -> int:
        """Bytes of all files that are there at once, at most."""
        hidden = self.of_shard.disk_bytes()
        if not self.sharded:
            return hidden
        # Sums are added up as soon as the last shard is through: those of two passes are there.
        return hidden + 2 * len(self._shards) * self._largest_sums()

    def _largest_sums(self) -> int:
        return max(
            (sum(map(sums_bytes, self._measurement.rows_of(key))) for key in self._summed()),
            default=0,
        )

    def _is_of(self, key: str, number: int) -> bool:
        return not key.startswith(SUM) and split_key(key)[1] == number

    def _summed(self) -> list[str]:
        """The passes that measure something."""
        keys = [one.key for one in self.of_shard.passes]
        return [key for key in keys if self._measurement.rows_of(key)]

    def _tasks(self) -> Iterator[Task]:
        summed = set(self._summed())
        numbers = range(len(self._shards))
        before: str | None = None
        for one in self.of_shard.passes:
            for number in numbers:
                yield Task(
                    key=f"{one.key}@{number}",
                    title=f"{title_of(one.key)}, shard {number + 1}",
                    needs=() if before is None else (f"{before}@{number}",),
                )
            if one.key in summed:
                rows = self._measurement.rows_of(one.key)
                yield Task(
                    key=SUM + one.key,
                    title=f"sums of the {title_of(one.key)}",
                    needs=tuple(f"{one.key}@{number}" for number in numbers),
                    sections=tuple(name for row in rows for name, _, _ in row.sections()),
                    numel=sum(row.shape[0] * row.shape[1] for row in rows),
                )
            before = one.key
