"""What is checked before the first task: memory and disk.

Memory is an estimate on the safe side: the interpreter with torch, and for each worker six copies
of the largest matrix in float32 with a fixed reserve, and what training an autoencoder takes. A
share group holds a sample of all its matrices beside one of them. Kept tensors need no more than
the reserve: they are copied by pieces. Of a table whose rows are coded by themselves a band is
held. A GPU has memory of its own, which all workers share: there
each has a context, and the large blocks that the codecs work in on an accelerator.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.execute.bands import numel_in_memory
from reallm_compiler.execute.events import Preflight
from reallm_compiler.planning.folding import Fold
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.counter import TaskCounter
from reallm_compiler.runs.tasks import TaskGraph
from reallm_compiler.storage.matrix import group_bytes
from reallm_compiler.system import cores, free_memory

DEVICE_TYPES = ("cpu", "cuda")
"""Devices that encode."""

INTERPRETER_BYTES = 350 * 2**20
"""An interpreter with torch loaded."""

RESERVE_BYTES = 200 * 2**20
"""Other memory of a worker, beside its matrix copies."""

COPIES = 6
"""Copies of the largest matrix in float32 that a worker may hold."""

CONTEXT_BYTES = 1 << 30
"""What CUDA and its libraries hold in each process, and the usual blocks of the codecs there."""

SMALL_NUMEL = 20_000_000
"""Below this many weights one process is faster than starting several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many processes encode, and the memory that they take.

    Attributes:
        count: the processes.
        memory_bytes: their estimated peak memory together, with all interpreters.
        memory_free_bytes: memory that is free on the machine; None if that is unknown.
        device_bytes, device_free_bytes: the same of the GPU's memory; None without a GPU.
    """

    count: int
    memory_bytes: int
    memory_free_bytes: int | None
    device_bytes: int | None = None
    device_free_bytes: int | None = None


def worker_bytes(plan: Plan) -> int:
    """Estimated peak memory of one worker, in bytes, without the interpreter."""
    largest = max((numel_in_memory(matrix) for matrix in plan.matrices), default=0)
    training = max((matrix.layout.cost.host_bytes for matrix in plan.matrices), default=0)
    files = sum(file.nbytes for file in plan.files)
    measured = max(map(_statistics_bytes, plan.matrices), default=0)
    measured = max(measured, *map(_fold_bytes, plan.folds.values()), 0)
    return COPIES * 4 * largest + training + _group_bytes(plan) + files + measured + RESERVE_BYTES


def matrix_bytes(matrix: PlannedMatrix) -> int:
    """Estimated peak memory of a worker that codes one matrix, without the interpreter."""
    own = COPIES * 4 * numel_in_memory(matrix) + matrix.layout.cost.host_bytes
    return own + _statistics_bytes(matrix) + RESERVE_BYTES


def _statistics_bytes(matrix: PlannedMatrix) -> int:
    """Memory of what was measured of a matrix, as it is read: two symmetric matrices of its inputs
    and two of its outputs in float32.
    """
    if not matrix.plan.needs_statistics:
        return 0
    p, q = matrix.shape
    return 2 * 4 * (p * p + q * q)


def _fold_bytes(fold: Fold) -> int:
    """Memory while folded factors are searched: the matrices that read one input and what was
    measured of them, with the Gram matrix that each is tried by.
    """
    shapes = [matrix.shape for matrix in fold.matrices]
    return 4 * sum(p * q + 2 * p * p + 3 * q * q for p, q in shapes)


def _group_bytes(plan: Plan) -> int:
    """Memory of what is gathered from all matrices of a group, of the group that needs most."""
    return max((_gathered_bytes(group) for group in plan.groups.values()), default=0)


def _gathered_bytes(group: Sequence[PlannedMatrix]) -> int:
    """What is gathered from the matrices of a group to learn what they share."""
    return group_bytes([matrix.layout for matrix in group])


def free_device_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for the CPU, whose memory is the machine's."""
    if device.type != "cuda":
        return None
    # Some versions of torch want a number here, or None for the current device.
    return torch.cuda.mem_get_info(device.index)[0]


def device_worker_bytes(plan: Plan) -> int:
    """Estimated peak memory of one worker on a GPU, in bytes."""
    matrix = max((_device_bytes(matrix) for matrix in plan.matrices), default=0)
    folds = max(map(_fold_bytes, plan.folds.values()), default=0)
    return matrix + folds + _group_bytes(plan) + CONTEXT_BYTES


def _device_bytes(matrix: PlannedMatrix) -> int:
    """Memory on a GPU while a matrix is coded."""
    cost = matrix.layout.cost
    encoding = COPIES * 4 * numel_in_memory(matrix) + _statistics_bytes(matrix)
    return encoding + cost.host_bytes + cost.device_bytes


def choose_workers(
    plan: Plan,
    asked: int | None,
    tasks: int,
    device: torch.device,
    learning: int = 0,
    *,
    times: int = 1,
) -> Workers:
    """Workers, and the memory that they take of the machine and of the device.

    When no number is asked for: one process for small models and where blocks learn, which follow
    each other; else one per core as far as memory goes.

    Args:
        plan: what is compiled.
        asked: the number that is asked for.
        tasks: that are left.
        device: where matrices are coded.
        learning: bytes that a worker takes where blocks learn; 0 where none do.
        times: how often each matrix is coded.

    Raises:
        CompileError: not even the largest matrix fits, or not for so many workers.
    """
    free, device_free = free_memory(), free_device_memory(device)
    each, device_each = worker_bytes(plan) + learning, device_worker_bytes(plan) + learning
    if asked is None:
        numel = times * sum(matrix.numel for matrix in plan.matrices)
        workers = 1 if numel < SMALL_NUMEL or learning else cores()
        if free is not None:
            workers = min(workers, (free - INTERPRETER_BYTES) // (each + INTERPRETER_BYTES))
        if device_free is not None:
            workers = min(workers, device_free // device_each)
    else:
        workers = asked
    workers = max(1, min(workers, tasks))
    needed = workers * each + (INTERPRETER_BYTES * workers if workers > 1 else 0)
    if free is not None and needed > free:
        largest_part = "kept tensors and files"
        if plan.matrices:
            largest = max(plan.matrices, key=numel_in_memory)
            largest_part = f"{largest.name} {list(largest.shape)} is the largest matrix"
        raise _too_small("memory", largest_part, needed, free, workers, "use a larger machine")
    # The interpreter that runs this is there already: it needs nothing more, and counts.
    together = needed + INTERPRETER_BYTES
    if device_free is None:
        return Workers(count=workers, memory_bytes=together, memory_free_bytes=free)
    if workers * device_each > device_free:
        largest = max(plan.matrices, key=_device_bytes)
        largest_part = f"{largest.name} {list(largest.shape)} needs most"
        needed, remedy = workers * device_each, "use `--device cpu`"
        raise _too_small(f"memory of {device}", largest_part, needed, device_free, workers, remedy)
    return Workers(
        count=workers,
        memory_bytes=together,
        memory_free_bytes=free,
        device_bytes=workers * device_each,
        device_free_bytes=device_free,
    )


def _too_small(
    what: str, location: str, needed: int, free: int, workers: int, remedy: str
) -> CompileError:
    return CompileError(
        f"{what} is too small: about {needed >> 20:,} MiB are needed for {workers} "
        f"worker{'s' if workers > 1 else ''} and {free >> 20:,} MiB are free",
        location=location,
        hint="use fewer `--workers`" if workers > 1 else f"free memory, or {remedy}",
    )


def check_disk(folder: Path, needed: int) -> int:
    """Free bytes in `folder`.

    Raises:
        CompileError: fewer than `needed`.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CompileError(
            f"the disk is too small: {needed:,} bytes are needed and {free:,} are free",
            location=str(folder),
            hint="choose another output folder, or a recipe with fewer bits",
        )
    return free


def preflight_event(
    workers: Workers,
    title: str,
    graph: TaskGraph,
    counter: TaskCounter,
    *,
    file_bytes: int,
    disk_bytes: int,
    disk_free_bytes: int,
    operations: int,
    notes: tuple[str, ...],
) -> Preflight:
    """What is reported before the first task; see `Preflight`."""
    return Preflight(
        file_bytes=file_bytes,
        disk_bytes=disk_bytes,
        disk_free_bytes=disk_free_bytes,
        memory_bytes=workers.memory_bytes,
        memory_free_bytes=workers.memory_free_bytes,
        device=title,
        device_bytes=workers.device_bytes,
        device_free_bytes=workers.device_free_bytes,
        workers=workers.count,
        tasks=len(graph),
        tasks_done=counter.tasks,
        numel=sum(task.numel for task in graph.tasks),
        numel_done=counter.numel,
        operations=operations,
        notes=notes,
    )
