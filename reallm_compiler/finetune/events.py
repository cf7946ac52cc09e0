"""What a tuning run tells while it goes on, and what it ends with."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.finetune.memory import MemoryEstimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The run is about to begin.

    Attributes:
        memory: what it will take.
        matrices: tuned matrices.
        parameters: tuned numbers.
        sequences: sequences to tune on.
        held_out: sequences held out.
        tokens: predicted tokens of the sequences to tune on.
        blocks: blocks of the model; 0 where the run has no use for them.
        resumed: where an earlier run stood, in words; None if there was none.
    """

    memory: MemoryEstimate
    matrices: int
    parameters: int
    sequences: int
    held_out: int
    tokens: int
    blocks: int
    resumed: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockDone:
    """A block has been tuned.

    Attributes:
        block: its number, from 0.
        blocks: of how many.
        before: held-out loss before, mean squared error of the block's output.
        after: held-out loss with what was kept.
        epochs: passes that were made.
    """

    block: int
    blocks: int
    before: float
    after: float
    epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """A step of end-to-end tuning is done.

    Attributes:
        step: its number, from 1.
        steps: of how many.
        loss: of the step's sequences, nats per token.
        held_out: held-out loss where it was taken after this step.
    """

    step: int
    steps: int
    loss: float
    held_out: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneReport:
    """How a run ended.

    Attributes:
        path: the adapter or model archive.
        blocks: one entry for each tuned block.
        before: held-out loss end to end before that stage; None without it.
        after: held-out loss with what was kept.
        rounding_error: largest ||R - R'|| / ||R|| of the stored factors over all matrices.
        file_bytes: length of the file.
        seconds: wall time of this run.
        steps_per_second: of end-to-end steps made in this run; None without any.
    """

    path: str
    blocks: tuple[BlockDone, ...]
    before: float | None
    after: float | None
    rounding_error: float
    file_bytes: int
    seconds: float
    steps_per_second: float | None


Event = Started | BlockDone | StepDone
"""What a listener hears."""
