"""What a run reports of its tasks: plain values, no printing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training is under way: sent at most once a second, at the end of an epoch.

    Attributes:
        name: title of the task.
        epoch, epochs: epochs that are done, and that there will be.
        error: relative error over the last epoch.
        epoch_seconds: mean time of an epoch in this run.
        operations: floating-point operations of the whole training of this task.
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
class TaskDone:
    """A task is finished and on disk.

    Attributes:
        name: its title.
        numel: weights coded in it.
        errors: relative error of each matrix in it.
        tasks_done, numel_done: progress with this task counted.
    """

    name: str
    numel: int
    errors: dict[str, float]
    tasks_done: int
    numel_done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TriedAgain:
    """A task was lost with its worker or its node, and is done again.

    Attributes:
        name: its title.
        why: what happened, and where.
    """

    name: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """An interrupted run goes on: the weights of one more finished task were read again.

    Attributes:
        tasks_done, tasks: tasks whose weights are as they were, of all finished ones.
    """

    tasks_done: int
    tasks: int
