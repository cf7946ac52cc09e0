"""Work as a graph of tasks: what is done, journalled and resumed as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task.

    Attributes:
        key: name in the journal, unique within a graph.
        title: name for people.
        needs: keys of the tasks that must be finished before this one begins.
        sections: the sections that it writes, in order.
        numel: weights that it codes, for progress.
        operations: floating-point operations of the training in it; 0 without one.
    """

    key: str
    title: str
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    numel: int = 0
    operations: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What a finished task leaves for the journal.

    Attributes:
        task: its key.
        sections: SHA-256 of each section that it wrote, in hex.
        errors: relative error of each matrix that it coded.
        source: SHA-256 of each tensor that it read, in hex.
    """

    task: str
    sections: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return {
            "task": self.task,
            "sections": self.sections,
            "errors": self.errors,
            "source": self.source,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The result that a record of the journal stands for."""
        return cls(**record)


def section_digests(results: Iterable[TaskResult]) -> dict[str, bytes]:
    """SHA-256 of each section that some tasks wrote."""
    return {
        name: bytes.fromhex(hexes) for result in results for name, hexes in result.sections.items()
    }


def source_digests(results: Iterable[TaskResult]) -> dict[str, str]:
    """SHA-256 of each tensor that some tasks read, in hex."""
    return {name: hexes for result in results for name, hexes in result.source.items()}


class TaskGraph:
    """Tasks and what they need of each other.

    Args:
        tasks: in the order in which they are begun as far as their needs allow.

    Raises:
        ValueError: two tasks have one key, a task needs one that is not there, or tasks need each
            other in a circle.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = tuple(tasks)
        self.by_key = {task.key: task for task in self.tasks}
        if len(self.by_key) < len(self.tasks):
            keys = [task.key for task in self.tasks]
            raise ValueError(f"two tasks are called {next(k for k in keys if keys.count(k) > 1)}")
        for task in self.tasks:
            for need in task.needs:
                if need not in self.by_key:
                    raise ValueError(f"{task.key} needs {need}, which is not a task")
        try:
            TopologicalSorter({task.key: task.needs for task in self.tasks}).prepare()
        except CycleError as error:
            raise ValueError(f"tasks depend on each other: {' -> '.join(error.args[1])}") from None

    def __len__(self) -> int:
        return len(self.tasks)

    def schedule(self, done: Collection[str] = ()) -> Schedule:
        """What is still to do when the tasks of these keys are finished."""
        return Schedule(self, done)


class Schedule:
    """Which task may begin next, given what is finished.

    Attributes:
        remaining: keys of the tasks that are not finished.
    """

    def __init__(self, graph: TaskGraph, done: Collection[str]) -> None:
        self._tasks = graph.tasks
        self._index = {task.key: index for index, task in enumerate(graph.tasks)}
        self.remaining = {task.key for task in graph.tasks if task.key not in done}
        self._sorter = TopologicalSorter(
            {key: self.remaining.intersection(graph.by_key[key].needs) for key in self.remaining}
        )
        self._sorter.prepare()
        self._ready: list[int] = []
        self._collect()

    def next(self) -> Task | None:
        """The first task that is ready and was not given out yet; None if there is none now."""
        return self._tasks[heappop(self._ready)] if self._ready else None

    def finish(self, key: str) -> None:
        """Record that a task that was given out is finished."""
        self.remaining.remove(key)
        self._sorter.done(key)
        self._collect()

    def _collect(self) -> None:
        for key in self._sorter.get_ready():
            heappush(self._ready, self._index[key])
