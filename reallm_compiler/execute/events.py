"""What a running compile tells whoever listens: plain values, no printing."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.plan.budget import Budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What is known before the first matrix.

    Attributes:
        file_bytes: length that the archive will have.
        disk_bytes: bytes that must still be reserved on disk.
        disk_free_bytes: free bytes where the archive is written.
        memory_bytes: estimated peak memory of all workers together.
        memory_free_bytes: memory that the machine can give, or None if it does not say.
        device: `cpu`, or the name of the GPU.
        device_bytes, device_free_bytes: the same as of memory, of the GPU's; None without one.
        workers: processes that encode.
        units: units of work in all.
        units_done: units that an interrupted run has finished.
        weights: weights to be coded in all.
        weights_done: weights of the finished units.
        operations: floating-point operations of all trainings that a compile of the whole recipe
            has still to do; 0 where nothing is trained.
        notes: what the plan has to say of the checkpoint.
    """

    file_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_free_bytes: int | None
    device: str
    workers: int
    units: int
    units_done: int
    weights: int
    weights_done: int
    operations: int = 0
    device_bytes: int | None = None
    device_free_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """An interrupted compile goes on: the weights of one more finished unit were read again.

    Attributes:
        units_done, units: units whose weights are as they were, of all finished ones.
    """

    units_done: int
    units: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training is under way: told at most once a second, at the end of an epoch.

    Attributes:
        name: the matrix, or `share group GROUP`.
        epoch, epochs: epochs that are done, and that there will be.
        error: relative error over the last epoch.
        epoch_seconds: mean time of an epoch in this run.
        operations: floating-point operations of the whole training of this unit.
    """

    name: str
    epoch: int
    epochs: int
    error: float
    epoch_seconds: float
    operations: int

    @property
    def seconds_left(self) -> float:
        """Time that this training still takes, at the rate so far."""
        return (self.epochs - self.epoch) * self.epoch_seconds

    @property
    def operations_per_second(self) -> float:
        """The rate so far."""
        return self.operations / self.epochs / self.epoch_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitDone:
    """One unit of work is on disk: a matrix, a share group, or the kept tensors and files.

    Attributes:
        name: the matrix, `share GROUP`, or `kept tensors`.
        weights: weights coded in this unit.
        errors: relative error of each matrix in it.
        units_done, weights_done: progress with this unit counted.
    """

    name: str
    weights: int
    errors: dict[str, float]
    units_done: int
    weights_done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileReport:
    """What a compile made.

    Attributes:
        path: the archive, or None for a trial with `only`.
        budget: its exact sizes (of the tried matrices for a trial).
        errors: relative error of each coded matrix.
        seconds: wall time of this run.
        units_resumed: units that an interrupted run had finished.
        whole_seconds: for a trial, how long compiling the whole model would take at its rate.
    """

    path: str | None
    budget: Budget
    errors: dict[str, float]
    seconds: float
    units_resumed: int
    whole_seconds: float | None = None

    def __repr__(self) -> str:
        return f"CompileReport({self.path!r}, {self.budget!r}, {self.seconds:.1f} s)"


Event = Checked | Preflight | Training | UnitDone
