"""What a compile takes of the machines that do its tasks: this one, or those of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from reallm_compiler.errors import CompileError
from reallm_compiler.execute.bands import numel_in_memory
from reallm_compiler.execute.preflight import (
    INTERPRETER_BYTES,
    Workers,
    choose_workers,
    device_worker_bytes,
    matrix_bytes,
    worker_bytes,
)
from reallm_compiler.execute.tasks import matrix_key
from reallm_compiler.planning.model import Plan
from reallm_compiler.runs.backends import Backend
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.parcels import ReservedFile


def workers_on(
    machines: Machines,
    plan: Plan,
    asked: int | None,
    tasks: int,
    learning: int = 0,
    *,
    times: int = 1,
) -> Workers:
    """Workers of a compile, and the memory that they take; arguments as of `choose_workers`.

    On a cluster a task takes the memory of its own matrix, so the smallest decides how many may
    run at once, and the largest whether all can run at all.

    Raises:
        CompileError: memory is too small.
    """
    need = task_memory(plan, learning)
    device_each = device_worker_bytes(plan) + learning
    each = worker_bytes(plan) + learning + INTERPRETER_BYTES
    smallest = min([need(matrix_key(matrix.name)) for matrix in plan.matrices], default=each)
    slots = machines.slots(smallest, device_each)
    if slots is None:
        return choose_workers(plan, asked, tasks, machines.device, learning, times=times)
    if each > slots.largest_bytes or not slots.count:
        largest = max(plan.matrices, key=numel_in_memory, default=None)
        raise CompileError(
            f"no node of the cluster has enough memory: about {each >> 20:,} MiB are needed for a "
            f"task, and the largest node offers {slots.largest_bytes >> 20:,} MiB",
            location=None
            if largest is None
            else f"{largest.name} {list(largest.shape)} is the largest matrix",
            hint="add a larger node, or offer more of a node's memory: `ray start --memory BYTES`",
        )
    count = max(1, min(asked or slots.count, slots.count, tasks))
    cuda = machines.device.type == "cuda"
    return Workers(
        count=count,
        memory_bytes=INTERPRETER_BYTES + count * each,
        memory_free_bytes=slots.memory_bytes,
        device_bytes=count * device_each if cuda else None,
    )


def backend_on(
    machines: Machines,
    plan: Plan,
    workers: int,
    learning: int = 0,
    output: ReservedFile | None = None,
) -> Backend:
    """What runs the tasks of a plan, or others that code matrices of the same names."""
    need = task_memory(plan, learning)
    return machines.backend(
        workers,
        memory=lambda task: need(task.key),
        device_bytes=device_worker_bytes(plan) + learning,
        output=output,
    )


def task_memory(plan: Plan, learning: int) -> Callable[[str], int]:
    """Estimated peak memory of the process that does a task, by the task's key.

    Args:
        plan: the plan.
        learning: bytes that a worker takes where blocks learn.
    """
    most = worker_bytes(plan) + learning + INTERPRETER_BYTES
    alone = {
        matrix_key(matrix.name): matrix_bytes(matrix) + INTERPRETER_BYTES
        for matrix in plan.matrices
        if matrix.plan.share is None
    }
    return lambda key: min(most, alone.get(key, most))
