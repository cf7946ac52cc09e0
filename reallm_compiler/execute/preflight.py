"""What is checked before the first matrix: device, memory, disk.

Memory is an estimate on the safe side: the interpreter with torch, and for each worker six copies
of the largest matrix in float32 with a fixed reserve, and what training an autoencoder takes.
"""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.layouts import matrix as matrix_law
from reallm_compiler.plan.model import Plan

INTERPRETER_BYTES = 350 * 2**20
"""An interpreter with torch loaded."""

RESERVE_BYTES = 200 * 2**20
"""Working room of a worker beside its matrix copies."""

COPIES = 6
"""Copies of the largest matrix in float32 that a worker may hold."""

SMALL_WEIGHTS = 20_000_000
"""Below this many weights one process is faster than starting several."""


def choose_device(asked: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        CompileError: it does not exist here.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise CompileError(
            f"`{asked}` is not a device", hint="use `auto`, `cpu`, `cuda` or `cuda:1`"
        ) from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise CompileError(f"`{asked}` is not supported", hint="use `auto`, `cpu` or `cuda`")
    if not torch.cuda.is_available():
        raise CompileError(
            f"`{asked}` was asked for and this machine has no usable CUDA device",
            note="torch reports no CUDA device (driver missing, or a CPU build of torch)",
            hint="use `--device cpu`, or install a CUDA build of torch",
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise CompileError(
            f"`{asked}` does not exist: this machine has {torch.cuda.device_count()} CUDA devices",
        )
    return device


def worker_bytes(plan: Plan) -> int:
    """Estimated peak memory of one worker, in bytes, without the interpreter."""
    largest = max((matrix.weights for matrix in plan.matrices), default=0)
    shapes = {(matrix.plan, matrix.shape) for matrix in plan.matrices}
    training = max((matrix_law.working_bytes(*shape) for shape in shapes), default=0)
    return COPIES * 4 * largest + training + _group_bytes(plan) + RESERVE_BYTES


def _group_bytes(plan: Plan) -> int:
    """Memory of the largest group that trains a decoder: all its patches, and where they lie."""
    trained = [
        members
        for members in plan.groups.values()
        if matrix_law.group_operations(members[0].plan, members[0].shape)
    ]
    return max((8 * sum(matrix.weights for matrix in group) for group in trained), default=0)


def free_memory() -> int | None:
    """Bytes that this process may still take, or None where the system does not say."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
    except OSError:
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - _virtual_bytes())
    return min(limits) if limits else None


def _virtual_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def choose_workers(plan: Plan, asked: int | None, units: int) -> tuple[int, int, int | None]:
    """Workers, their estimated peak memory together, and the memory that is free, in bytes.

    Without a wish: one process for small models, else one per core as far as memory goes.

    Raises:
        CompileError: not even the largest matrix fits, or not for so many workers.
    """
    free = free_memory()
    each = worker_bytes(plan)
    if asked is None:
        weights = sum(matrix.weights for matrix in plan.matrices)
        workers = 1 if weights < SMALL_WEIGHTS else len(os.sched_getaffinity(0))
        workers = max(1, min(workers, units))
        if free is not None:
            fitting = (free - INTERPRETER_BYTES) // (each + INTERPRETER_BYTES)
            workers = max(1, min(workers, fitting))
    else:
        workers = max(1, min(asked, units))
    needed = workers * each + (INTERPRETER_BYTES * workers if workers > 1 else 0)
    if free is not None and needed > free:
        largest = max(plan.matrices, key=lambda matrix: matrix.weights)
        raise CompileError(
            f"memory is too small: about {needed >> 20:,} MiB are needed for {workers} "
            f"worker{'s' if workers > 1 else ''} and {free >> 20:,} MiB are free",
            location=f"{largest.name} {list(largest.shape)} is the largest matrix",
            hint="use fewer `--workers`" if workers > 1 else "free memory, or use a larger machine",
        )
    return workers, needed, free


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
