"""Events of a tuning run, and its final report."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.finetune.memory import MemoryEstimate


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorsRead:
    """Tensors of a model have been read or decoded, before anything is tuned.

    Attributes:
        model: `archive`, or `original` for the model that it was compiled from.
        done, total: of how many.
    """

    model: str
    done: int
    total: int


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
        steps: steps of Adam in all, at most: those of all blocks and those end to end.
        block_steps: of these, the steps of one block.
        resumed: where an earlier run stood, in words; None if there was none.
    """

    memory: MemoryEstimate
    matrices: int
    parameters: int
    sequences: int
    held_out: int
    tokens: int
    blocks: int
    steps: int
    block_steps: int
    resumed: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDone:
    """A batch of a block is done.

    Attributes:
        block, blocks: the block's number, from 0, and how many there are.
        epoch, epochs: the pass, from 1, of how many at most; 0 while inputs and targets of the
            block are computed.
        batch, batches: batches of this pass that are done, and all of it.
    """

    block: int
    blocks: int
    epoch: int
    epochs: int
    batch: int
    batches: int


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
class MatricesWritten:
    """Matrices of a new model archive were decoded, and their errors measured again.

    Attributes:
        done, total: of how many.
    """

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneReport:
    """How a run ended.

    Attributes:
        path: the adapter or model archive.
        blocks: one entry for each tuned block.
        before: held-out loss end to end before that stage; None without it.
        after: held-out loss with what was kept.
        diverged: the step that ended that stage, as the held-out loss was twice that before it;
            None if it never was.
        rounding_error: largest ||R - R'|| / ||R|| of the stored factors over all matrices.
        file_bytes: length of the file.
        seconds: wall time of this run.
        steps_per_second: of end-to-end steps made in this run; None without any.
    """

    path: str
    blocks: tuple[BlockDone, ...]
    before: float | None
    after: float | None
    diverged: int | None
    rounding_error: float
    file_bytes: int
    seconds: float
    steps_per_second: float | None


Event = TensorsRead | Started | BatchDone | BlockDone | StepDone | MatricesWritten
"""What a callback is called with."""
