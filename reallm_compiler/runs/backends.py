"""Where tasks run: in this process, in worker processes, or on a cluster (`ray_backend`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import Any, Protocol

from reallm_compiler.runs.job import Context, Job
from reallm_compiler.runs.pool import ProcessPool
from reallm_compiler.runs.stop import StopRequest
from reallm_compiler.runs.tasks import Schedule, TaskGraph, TaskResult


class Backend(Protocol):
    """Runs what a schedule says is ready."""

    def results(
        self, job: Job, schedule: Schedule, stop: StopRequest, emit: Callable[[Any], None]
    ) -> Generator[TaskResult, None, None]:
        """Results in order of completion, each finished in the schedule before the next begins.

        Ends early when a stop is asked for. Raises what a task raises. To be closed by the caller.
        """
        ...


class InProcess:
    """Runs tasks one after the other in this process."""

    def results(
        self, job: Job, schedule: Schedule, stop: StopRequest, emit: Callable[[Any], None]
    ) -> Generator[TaskResult, None, None]:
        """See `Backend`."""
        with job.open(Context(emit, lambda: stop.requested)) as runner:
            while not stop.requested and (task := schedule.next()) is not None:
                result = runner.run(task)
                schedule.finish(task.key)
                yield result


def backend_for(workers: int) -> Backend:
    """This process for one worker, else so many worker processes."""
    return InProcess() if workers == 1 else ProcessPool(workers)


def results(
    backend: Backend,
    job: Job,
    graph: TaskGraph,
    done: Collection[str],
    stop: StopRequest,
    emit: Callable[[Any], None],
) -> Generator[TaskResult, None, None]:
    """Results of the tasks that are not in `done` yet; to be closed by the caller.

    Raises:
        Interrupted: a stop was asked for, and tasks are left.
        CompileError: a worker died.
        ReallmError: what a task raised.
    """
    schedule = graph.schedule(done)
    yield from backend.results(job, schedule, stop, emit)
    if stop.requested and schedule.remaining:
        raise stop.interrupted()
