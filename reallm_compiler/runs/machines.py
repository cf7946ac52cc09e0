"""The machines that do the tasks of a run: what is asked of them, and this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from reallm_compiler.errors import ReallmError
from reallm_compiler.runs.backends import Backend, backend_for
from reallm_compiler.runs.devices import device_title
from reallm_compiler.runs.identity import compute_name, machine_fields
from reallm_compiler.runs.parcels import ReservedFile
from reallm_compiler.runs.tasks import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """What a cluster offers to tasks of some size.

    Attributes:
        count: tasks that run at once.
        memory_bytes: memory of all nodes.
        largest_bytes: memory of the node that has most.
    """

    count: int
    memory_bytes: int
    largest_bytes: int


Memory = Callable[[Task], int]
"""Estimated peak memory of the process that does a task, in bytes."""


def unknown_memory(task: Task) -> int:
    """Of a task that needs little."""
    return 0


class Machines(Protocol):
    """The machines of a run, all alike.

    Attributes:
        device: where they work.
        title: the device's name for people.
        fields: what decides the bytes that they make (`identity.machine_fields`).
    """

    device: torch.device
    title: str
    fields: dict[str, str]

    def slots(self, memory_bytes: int, device_bytes: int) -> Slots | None:
        """What is there for tasks of so much memory, of the machine and of its GPU.

        None on this machine, whose memory and cores the caller can look at.
        """
        ...

    def backend(
        self,
        workers: int,
        *,
        memory: Memory = unknown_memory,
        device_bytes: int = 0,
        output: ReservedFile | None = None,
    ) -> Backend:
        """What runs the tasks.

        Args:
            workers: tasks at once.
            memory: of a task, in bytes.
            device_bytes: of a GPU, for any task.
            output: where sections go; None if nothing is stored.
        """
        ...


def check_own_kind(machines: Machines, what: str, error: type[ReallmError]) -> None:
    """The machines are of the kind of this one, which has a part in the work.

    Args:
        machines: those of a cluster.
        what: the part that is done here.
        error: the class of the error.

    Raises:
        ReallmError: of class `error`; they are of another kind.
    """
    own = compute_name(torch.device("cpu"))
    if machines.fields["compute"] != own:
        raise error(
            f"the nodes of the cluster are of another kind than this machine, which {what}",
            note=f"`{own}` here, `{machines.fields['compute']}` there",
            hint="run this command on a node of the same kind, with `--device cpu`",
        )


class ThisMachine:
    """Tasks are done on this machine (`Machines`).

    Args:
        device: where it works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.title = device_title(device)
        self.fields = machine_fields(device)

    def slots(self, memory_bytes: int, device_bytes: int) -> None:
        """See `Machines`."""
        return

    def backend(
        self,
        workers: int,
        *,
        memory: Memory = unknown_memory,
        device_bytes: int = 0,
        output: ReservedFile | None = None,
    ) -> Backend:
        """See `Machines`."""
        return backend_for(workers)
