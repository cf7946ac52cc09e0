"""What a worker process of a Ray cluster runs: it opens a job once and does one task after another.

Tasks are generators of answers, so that sections reach the writing process in parcels while Ray
holds the worker back where that process is slower. The work itself is done by one thread, since
torch keeps its number of threads for each thread by itself, and what a job has open stays open for
the next task. A worker of other software, or of a processor with another capability, refuses: its
bytes could be others.
"""

from __future__ import annotations

import os
import pickle
import platform
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.job import Context, Job, Runner
from reallm_compiler.runs.parcels import Parcel, ParcelSink, ReservedFile
from reallm_compiler.runs.tasks import Task, TaskResult
from reallm_compiler.runs.worker import Emitted, Failure, answer, failure_of


@dataclass(frozen=True, slots=True)
class Begun:
    """The first answer: where the task is done.

    Attributes:
        node: name of the machine.
        process: number of the worker process.
    """

    node: str
    process: int


Answer = Begun | Parcel | Emitted | Failure | TaskResult
"""What a task answers: any number of parcels and events, then a result or a failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a worker needs to know of a run, beside its tasks.

    Attributes:
        run: distinguishes runs.
        job: reference to the pickled job in the object store.
        fields: what the worker's machine must be like, by `node_fields`.
        device: where it works.
        sections: the actor that reads sections which were stored; None where the worker sees the
            output itself.
    """

    run: str
    job: Any
    fields: Mapping[str, str]
    device: str
    sections: Any = None


def node_fields(device: str) -> dict[str, str]:
    """What must be the same on all machines of a run, by the keys of `identity.TITLES`."""
    import torch

    from reallm_compiler.runs.identity import machine_fields

    return {**machine_fields(torch.device(device)), "python": platform.python_version()}


def describe(device: str) -> tuple[dict[str, str], str, int]:
    """Of this worker's machine: `node_fields`, the device's name, and bytes of a GPU's memory."""
    import torch

    from reallm_compiler.runs.devices import device_title

    one = torch.device(device)
    total = torch.cuda.get_device_properties(one).total_memory if one.type == "cuda" else 0
    return node_fields(device), device_title(one), total


def run_task(order: Order, task: Task) -> Iterator[Answer]:
    """Do a task of a run; the answers."""
    yield Begun(platform.node(), os.getpid())
    yield from _serving(order).answers(task)


class Sections:
    """Reads sections of the output in a process that sees it, for workers that do not."""

    def __init__(self, output: ReservedFile) -> None:
        self._sink = output.open()

    def read(self, name: str) -> bytes:
        """A section that was stored."""
        return self._sink.read(name)


class Serving:
    """A run that this process has open."""

    def __init__(self, order: Order, get: Callable[[Any], Any]) -> None:
        self._order = order
        self._get = get
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._answers: queue.Queue[Answer] = queue.Queue(maxsize=1)
        self._sink: ParcelSink | None = None
        self.run = order.run
        threading.Thread(target=self._serve, daemon=True).start()

    def answers(self, task: Task) -> Iterator[Answer]:
        """Do a task; the last answer is its result or a failure."""
        self._tasks.put(task)
        while True:
            found = self._answers.get()
            yield found
            if isinstance(found, TaskResult | Failure):
                return

    def end(self) -> None:
        """Do no more tasks."""
        self._tasks.put(None)

    def _serve(self) -> None:
        with ExitStack() as stack:
            runner = self._opened(stack)
            while (task := self._tasks.get()) is not None:
                if isinstance(runner, Failure):
                    self._answers.put(runner)
                    continue
                found = answer(runner, pickle.dumps(task), threading.Event())
                assert found is not None  # no halt was asked for
                if self._sink is not None:
                    self._sink.discard()  # what a task has left that has failed
                self._answers.put(found)

    def _opened(self, stack: ExitStack) -> Runner | Failure:
        order = self._order
        sections = order.sections
        if sections is not None:
            self._sink = ParcelSink(
                self._answers.put, lambda name: bytes(self._get(sections.read.remote(name)))
            )
        context = Context(
            lambda event: self._answers.put(Emitted(event)), lambda: False, self._sink
        )
        try:
            check_fields(node_fields(order.device), order.fields, platform.node())
            job: Job = pickle.loads(self._get(order.job[0]))
            return stack.enter_context(job.open(context))
        # Whatever is wrong is the driver's to raise.
        except BaseException as error:
            return failure_of(error)


def check_fields(found: Mapping[str, str], wanted: Mapping[str, str], node: str) -> None:
    """A machine is like the others.

    Args:
        found: of the machine, by `node_fields`.
        wanted: of the others.
        node: its name.

    Raises:
        CompileError: it has other software, or a processor of another capability.
    """
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if not other:
        return
    names = {"compute": "device or processor capability", "python": "Python"}
    raise CompileError(
        f"the node {node} differs from the other machines of this run: "
        + "; ".join(
            f"{names.get(key, key)} is `{found.get(key)}` there and `{wanted[key]}` elsewhere"
            for key in other
        ),
        location=node,
        note="machines that differ may give other bytes",
        hint="give all nodes the same software and processors, or let this one do no tasks: "
        "`ray start --num-cpus 0`",
    )


_current: Serving | None = None


def _serving(order: Order) -> Serving:
    """The run as this process has it open; another one is ended."""
    global _current
    if _current is None or _current.run != order.run:
        if _current is not None:
            _current.end()
        import ray

        _current = Serving(order, ray.get)
    return _current
