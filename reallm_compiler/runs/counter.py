"""Finished tasks of a run are counted, written to the journal and reported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from reallm_compiler.runs.events import TaskDone
from reallm_compiler.runs.journal import Journal
from reallm_compiler.runs.tasks import TaskGraph, TaskResult
from reallm_compiler.runs.training import StateFiles


class TaskCounter:
    """Counts finished tasks and reports each.

    Attributes:
        tasks, numel: finished tasks, and the weights coded in them.
    """

    def __init__(
        self, graph: TaskGraph, done: Collection[str], emit: Callable[[TaskDone], None]
    ) -> None:
        self._graph = graph
        self._emit = emit
        self.tasks = len(done)
        self.numel = sum(graph.by_key[key].numel for key in done)

    def finished(self, result: TaskResult) -> None:
        """Count a task and report it."""
        task = self._graph.by_key[result.task]
        self.tasks += 1
        self.numel += task.numel
        self._emit(
            TaskDone(
                name=task.title,
                numel=task.numel,
                errors=result.errors,
                tasks_done=self.tasks,
                numel_done=self.numel,
            )
        )


def record(
    found: Iterable[TaskResult],
    done: dict[str, TaskResult],
    journal: Journal,
    states: StateFiles,
    counter: TaskCounter,
) -> None:
    """Put each result into the journal as soon as it is there, then into `done`.

    Raises:
        CompileError: the disk refuses a record.
    """
    for result in found:
        journal.append(result.to_record())
        states.remove(result.task)
        done[result.task] = result
        counter.finished(result)
