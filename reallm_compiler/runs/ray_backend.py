"""Tasks on a Ray cluster: what is submitted, what comes back, and what is tried again.

At most as many tasks are submitted as run at once, and each may be two parcels ahead of what was
written: so what is on its way is bounded, in number and in bytes. Retries are ours (`attempts`):
Ray's own would run a task again without a limit, or without a word.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.attempts import Attempt, Attempts, Loss
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.events import TriedAgain
from reallm_compiler.runs.job import Job
from reallm_compiler.runs.machines import Memory, Slots
from reallm_compiler.runs.oom import MemoryShortageError
from reallm_compiler.runs.parcels import PARCELS_AHEAD, Arrivals, Parcel, ReservedFile
from reallm_compiler.runs.ray_worker import Answer, Begun, Order, Sections, run_task
from reallm_compiler.runs.sink import FileSink
from reallm_compiler.runs.stop import StopRequest
from reallm_compiler.runs.tasks import Schedule, TaskResult
from reallm_compiler.runs.worker import Emitted, Failure

POLL_SECONDS = 0.2
"""Seconds after which a request to stop is looked for while no worker answers."""


class Connection(Protocol):
    """A cluster that was reached.

    Attributes:
        ray: the library.
        options: as the user named it.
        device: where workers work.
        node_fields: what all its machines are like.
    """

    ray: Any
    options: ClusterOptions
    device: torch.device
    node_fields: dict[str, str]

    @property
    def lost(self) -> CompileError | None:
        """The error of a cluster that does not answer any more; None while it does."""
        ...

    def slots(self, memory_bytes: int, device_bytes: int) -> Slots:
        """See `Machines`."""
        ...

    def gpus(self, device_bytes: int) -> float:
        """The part of a GPU that a task takes."""
        ...


@dataclass(eq=False, slots=True)
class Submitted:
    """An attempt on the cluster.

    Attributes:
        attempt: which one.
        answers: Ray's generator of references to its answers.
        arrivals: takes its sections; None if workers write in place, or nothing is stored.
        node: where it is done, once that is known.
    """

    attempt: Attempt
    answers: Any
    arrivals: Arrivals | None
    node: str = field(default="a node")


class RayBackend:
    """Runs tasks on a cluster (`backends.Backend`).

    Args:
        cluster: the cluster.
        workers: tasks at once, at most.
        memory: of a task, in bytes.
        device_bytes: of a GPU, for any task.
        output: where sections go; None if nothing is stored.
    """

    def __init__(
        self,
        cluster: Connection,
        workers: int,
        memory: Memory,
        device_bytes: int,
        output: ReservedFile | None,
    ) -> None:
        self._cluster = cluster
        self._ray = cluster.ray
        self._workers = workers
        self._memory = memory
        self._device = device_bytes
        self._output = None if cluster.options.shared_storage else output

    def results(
        self, job: Job, schedule: Schedule, stop: StopRequest, emit: Callable[[Any], None]
    ) -> Generator[TaskResult, None, None]:
        """See `Backend`; a stop ends tasks where they are.

        Raises:
            CompileError: a task failed three times, the cluster is lost, or no node has enough.
        """
        with ExitStack() as stack:
            sink = None
            if self._output is not None:
                sink = stack.enter_context(closing(self._output.open()))
            run = Run(self, job, schedule, sink, emit)
            stack.callback(run.cancel)
            yield from run.results(stop)


class Run:
    """The tasks of one job on a cluster."""

    def __init__(
        self,
        backend: RayBackend,
        job: Job,
        schedule: Schedule,
        sink: FileSink | None,
        emit: Callable[[Any], None],
    ) -> None:
        self._backend = backend
        self._cluster = backend._cluster
        self._ray = backend._ray
        self._sink = sink
        self._emit = emit
        self._attempts = Attempts(schedule)
        self._submitted: dict[Attempt, Submitted] = {}
        self._task = self._ray.remote(
            max_retries=0,
            num_returns="streaming",
            _generator_backpressure_num_objects=PARCELS_AHEAD,
            scheduling_strategy="SPREAD",
        )(run_task)
        self._order = Order(
            run=uuid.uuid4().hex,
            job=[self._ray.put(pickle.dumps(job))],
            fields=self._cluster.node_fields,
            device=str(self._cluster.device),
            sections=None if sink is None else self._sections(backend._output),
        )

    def results(self, stop: StopRequest) -> Iterator[TaskResult]:
        """See `RayBackend.results`."""
        failure: BaseException | None = None
        while not stop.requested:
            lost = self._cluster.lost
            if lost is not None:
                raise lost
            while failure is None and (attempt := self._attempts.begin(self._slots())):
                self._submit(attempt)
            if not self._submitted:
                break
            for one, answer in self._answers():
                if isinstance(answer, TaskResult):
                    self._finish(one, answer)
                    yield answer
                elif isinstance(answer, Loss):
                    failure = failure or self._lose(one, answer)
                else:
                    failure = failure or answer
                    self._drop(one.attempt)
        if failure is not None and not stop.requested:
            raise failure

    def cancel(self) -> None:
        """End all tasks where they are."""
        for attempt in list(self._submitted):
            self._drop(attempt)

    def _slots(self) -> int:
        backend = self._backend
        found = self._cluster.slots(0, backend._device).count
        if not found and not self._submitted:
            raise CompileError(
                "no node of the cluster is left that does tasks",
                hint="add nodes, then run the same command again to resume",
            )
        return min(backend._workers, found)

    def _submit(self, attempt: Attempt) -> None:
        largest = self._cluster.slots(0, 0).largest_bytes
        task = self._task.options(
            name=attempt.task.title,
            num_cpus=1,
            num_gpus=self._cluster.gpus(self._backend._device),
            memory=min(self._backend._memory(attempt.task) * attempt.memory_times, largest),
        )
        arrivals = None if self._sink is None else Arrivals(self._sink)
        answers = task.remote(self._order, attempt.task)
        self._submitted[attempt] = Submitted(attempt, answers, arrivals)

    def _answers(self) -> Iterator[tuple[Submitted, TaskResult | Loss | BaseException]]:
        """Results, losses and failures that are there; all else is dealt with."""
        waiting = {one.answers: one for one in self._submitted.values()}
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
        for answers in ready:
            one = waiting[answers]
            found = self._next(one)
            if isinstance(found, Begun):
                one.node = found.node
            elif isinstance(found, Emitted):
                self._emit(found.event)
            elif isinstance(found, Parcel):
                assert one.arrivals is not None  # else the worker sends none
                one.arrivals.add(found)
            elif isinstance(found, Failure):
                yield one, self._loss(found.error, one.node) or found.error
            else:
                yield one, found

    def _next(self, one: Submitted) -> Answer | Loss:
        """The next answer of an attempt, or why there is none."""
        try:
            answer: Answer = self._ray.get(next(one.answers))
        except StopIteration:
            return Loss(f"{one.node}: the task ended without a result")
        except self._ray.exceptions.RayError as error:
            loss = self._loss(error, one.node)
            if loss is None:
                raise
            return loss
        return answer

    def _loss(self, error: BaseException, node: str) -> Loss | None:
        """What a failure of machines came from; None for one of the task itself."""
        exceptions = self._ray.exceptions
        if isinstance(error, MemoryShortageError | exceptions.OutOfMemoryError):
            return Loss(f"{node}: memory ran out", memory=True)
        if isinstance(error, exceptions.NodeDiedError):
            return Loss(f"{node}: the node is gone")
        if isinstance(error, exceptions.WorkerCrashedError):
            return Loss(f"{node}: the worker process was killed")
        if isinstance(error, exceptions.RayTaskError):
            cause = error.cause
            return None if cause is None else self._loss(cause, node)
        if isinstance(error, exceptions.RayError):
            return Loss(f"{node}: {(str(error).strip().splitlines() or ['lost'])[0][:200]}")
        return None

    def _finish(self, one: Submitted, result: TaskResult) -> None:
        if one.arrivals is not None:
            one.arrivals.finish(result)
        del self._submitted[one.attempt]
        for other in self._attempts.finish(one.attempt):
            self._drop(other)

    def _lose(self, one: Submitted, loss: Loss) -> CompileError | None:
        """Try a task again that was lost; the error if it was tried often enough."""
        self._drop(one.attempt)
        try:
            self._attempts.lose(one.attempt, loss)
        except CompileError as error:
            return error
        self._emit(TriedAgain(name=one.attempt.task.title, why=loss.why))
        return None

    def _drop(self, attempt: Attempt) -> None:
        one = self._submitted.pop(attempt)
        with suppress(Exception):  # it may be over, or its node gone
            self._ray.cancel(one.answers, force=True)

    def _sections(self, output: ReservedFile | None) -> Any:  # noqa: ANN401
        """The actor on this node that reads sections for workers."""
        ray = self._ray
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = ray.get_runtime_context().get_node_id()
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Sections)
        return actor.options(scheduling_strategy=strategy(here, soft=False)).remote(output)
