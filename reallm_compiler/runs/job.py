"""What connects work to the process that does it: a job makes runners, a runner does tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from reallm_compiler.runs.sink import Sink
from reallm_compiler.runs.tasks import Task, TaskResult


@dataclass(frozen=True, slots=True)
class Context:
    """How a runner reaches the process that schedules tasks.

    Attributes:
        emit: sends an event there; it must be picklable.
        stop_requested: whether a stop was asked for.
        sink: where sections go, and None for the job's own output, which this process sees.
    """

    emit: Callable[[Any], None]
    stop_requested: Callable[[], bool]
    sink: Sink | None = None


class Runner(Protocol):
    """Does tasks, one at a time."""

    def run(self, task: Task) -> TaskResult:
        """Do one task; whatever it raises ends the run."""
        ...


class Job(Protocol):
    """All that tasks of one run have in common; it is pickled once for each worker process."""

    def open(self, context: Context) -> AbstractContextManager[Runner]:
        """A runner in this process, with the numerical settings that it needs."""
        ...
