"""The events of a compile, and its report: plain values, no printing."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.planning.budget import Budget
from reallm_compiler.runs.events import Checked, TaskDone, Training, TriedAgain

__all__ = [
    "Checked",
    "CompileReport",
    "Event",
    "FellBack",
    "Preflight",
    "TaskDone",
    "Training",
    "TriedAgain",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What is known before the first matrix.

    Attributes:
        file_bytes: length that the archive will have.
        disk_bytes: bytes that must still be reserved on disk.
        disk_free_bytes: free bytes where the archive is written.
        memory_bytes: estimated peak memory of all workers together.
        memory_free_bytes: memory that is free on the machine, or None if that is unknown.
        device: `cpu`, or the name of the GPU.
        device_bytes, device_free_bytes: the same as of memory, of the GPU's; None without one.
        workers: processes that encode.
        tasks: tasks in all.
        tasks_done: tasks that an interrupted run has finished.
        numel: weights to be coded in all.
        numel_done: weights coded in the finished tasks.
        operations: floating-point operations of all trainings that a compile of the whole recipe
            has still to do; 0 where nothing is trained.
        notes: remarks of the plan on the checkpoint.
    """

    file_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_free_bytes: int | None
    device: str
    workers: int
    tasks: int
    tasks_done: int
    numel: int
    numel_done: int
    operations: int = 0
    device_bytes: int | None = None
    device_free_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FellBack:
    """The error of a block that learns became NaN or infinite: the best state before was kept.

    Attributes:
        name: of the block.
        epoch, step: where, from 1.
    """

    name: str
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileReport:
    """What a compile made.

    Attributes:
        path: the archive, or None for a trial with `only`.
        budget: its exact sizes (of the tried matrices for a trial).
        errors: relative error of each coded matrix.
        seconds: wall time of this run.
        tasks_resumed: tasks that an interrupted run had finished.
        whole_seconds: for a trial, how long compiling the whole model would take at its rate.
    """

    path: str | None
    budget: Budget
    errors: dict[str, float]
    seconds: float
    tasks_resumed: int
    whole_seconds: float | None = None

    def __repr__(self) -> str:
        return f"CompileReport({self.path!r}, {self.budget!r}, {self.seconds:.1f} s)"


Event = Checked | FellBack | Preflight | Training | TaskDone | TriedAgain
