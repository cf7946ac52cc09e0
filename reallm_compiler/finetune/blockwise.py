"""Block-wise tuning (Algorithm 2): each block follows the original block on what reaches it.

For block 0, 1, ...:
  1. the inputs are the outputs of the tuned blocks before it, for all sequences;
  2. the targets, also those of the held-out sequences, are the *original* block's outputs on these
     inputs; then the original block is dropped;
  3. Adam lowers the mean squared error; after each pass the held-out error is taken, the best
     factors are kept, and a few passes without a better one end it;
  4. the inputs are replaced by the tuned block's outputs.

Blocks are not independent of each other: the inputs of one are what the tuned ones before it make.
So they are tuned one after the other, and processes share the batches of each (`processes`).

In memory are the quantized model and one original block; inputs and targets of all sequences lie
in host memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.events import BatchDone, BlockDone
from reallm_compiler.finetune.gradients import GradientSum
from reallm_compiler.finetune.optimizer import rate, restore
from reallm_compiler.finetune.tuning import Tuning
from reallm_compiler.models.blocks import Block, calls_of, hidden_states, run_block
from reallm_compiler.models.sequences import Sequences, permutation
from reallm_compiler.runs.optimizer import Adam
from reallm_compiler.runs.state import under
from reallm_compiler.units import ceil_div


class BlockWise:
    """The first stage of a run.

    Args:
        tuning: the run.

    Raises:
        UnfitBlocksError: the blocks cannot be run one by one; says why.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.processes = tuning.processes
        self.tunable = tuning.tunable
        self.blocks = tuning.blocks
        self.original = tuning.original
        self.options = tuning.options.block
        self.train = tuning.train.take(range(min(len(tuning.train), self.options.sequences)))
        self.held_out = tuning.held_out
        self.seed = tuning.options.seed
        self.state = tuning.state
        self.emit = tuning.emit
        self.device = tuning.device
        self.dtype = tuning.dtype
        model = self.tunable.model
        self.original.check_blocks(self.blocks, model)
        self.calls = calls_of(model, self.blocks, self.train.ids[:2].to(self.device))

    def run(self, position: dict[str, Any], tensors: dict[str, Tensor]) -> list[BlockDone]:
        """Tune all blocks, from where an earlier run stood.

        Args:
            position: `block`, and within a block `epoch` and more; empty to begin.
            tensors: Adam's moments and the best factors of that block.
        """
        done = [BlockDone(**entry) for entry in position.get("blocks", [])]
        inputs = [self._first(part) for part in (self.train, self.held_out)]
        for number, block in enumerate(self.blocks):
            if number >= len(done):
                targets = self._targets(number, block, inputs)
                within = position if position.get("block") == number else {}
                result = self._tune(number, block, inputs, targets, within, tensors, done)
                del targets
                done.append(result)
                self.emit(result)
                if self.state.due():
                    self._save({"blocks": done}, {})
            if number + 1 < len(self.blocks):
                self._advance(number, block, inputs)
        return done

    def _first(self, part: Sequences) -> Tensor:
        """What reaches the first block: [n, t, d]."""
        first = self.blocks[0].module
        return torch.cat(
            [
                hidden_states(self.tunable.model, first, part.ids[at].to(self.device)).cpu()
                for at in self._batches(len(part))
            ]
        )

    def _targets(self, number: int, block: Block, inputs: list[Tensor]) -> list[Tensor]:
        """The original block's outputs on the inputs; it is gone afterwards."""
        original = self.original.block(block, self.tunable.model, self.device, self.dtype)
        targets = [torch.empty_like(part) for part in inputs]
        for part, made, at in self._parts(number):
            with torch.no_grad():
                targets[made][at] = self._run(number, original, part, inputs[made], at).cpu()
        self._complete(targets)
        return targets

    def _advance(self, number: int, block: Block, inputs: list[Tensor]) -> None:
        """Replace the inputs by what the block makes of them."""
        for part, of, at in self._parts(number + 1):
            with torch.no_grad():
                inputs[of][at] = self._run(number, block.module, part, inputs[of], at).cpu()
        self._complete(inputs)

    def _complete(self, states: list[Tensor]) -> None:
        """Fill in what other processes have computed."""
        for whole in states:
            self.processes.complete(whole, self._batches(len(whole)))

    def _run(
        self,
        number: int,
        module: nn.Module,
        part: Sequences,
        inputs: Tensor,
        at: slice | Tensor,
    ) -> Tensor:
        """The output [b, t, d] of a block, or its original, on some sequences of a part."""
        call = self.calls.of(number, part.ids[at].to(self.device))
        return run_block(
            module, inputs[at].to(self.device, copy=True), call
        )  # it may work in place

    def _parts(self, block: int) -> Iterator[tuple[Sequences, int, slice]]:
        """All batches of this process, to compute what a block needs: part, its number, indices."""
        parts = [
            (part, number, batches[piece])
            for number, part in enumerate((self.train, self.held_out))
            for batches in (self._batches(len(part)),)
            for piece in self.processes.own_pieces(len(batches))
        ]
        for batch, given in enumerate(parts, 1):
            yield given
            self._emit_batch(block, 0, batch, len(parts))

    def _emit_batch(self, block: int, epoch: int, batch: int, batches: int) -> None:
        self.emit(
            BatchDone(
                block=block,
                blocks=len(self.blocks),
                epoch=epoch,
                epochs=self.options.epochs,
                batch=batch,
                batches=batches,
            )
        )

    def _tune(
        self,
        number: int,
        block: Block,
        inputs: list[Tensor],
        targets: list[Tensor],
        within: dict[str, Any],
        tensors: dict[str, Tensor],
        done: list[BlockDone],
    ) -> BlockDone:
        options = self.options
        parameters = self.tunable.parameters_in(block.path, block.layers)
        for name, parameter in self.tunable.parameters():
            parameter.requires_grad_(name in parameters)
        if not parameters:
            return BlockDone(block=number, blocks=len(self.blocks), before=0, after=0, epochs=0)
        adam = Adam(parameters, options.betas)
        best = {name: value.detach().clone() for name, value in parameters.items()}
        first = float(within.get("before", math.nan))
        least = float(within.get("least", math.nan))
        epoch, idle = int(within.get("epoch", 0)), int(within.get("idle", 0))
        if within:
            adam.load(under("adam/", tensors))
            best = {name: tensors[f"best/{name}"].to(self.device) for name in best}
        else:
            first = least = self._held_out(number, block, inputs[1], targets[1])
            self._check_finite(first, number, epoch, 0)
        batch = min(options.batch * options.accumulation, len(inputs[0]))
        pieces = ceil_div(batch, options.batch)
        self.processes.check_pieces(pieces, "block.accumulation")
        per_epoch = len(inputs[0]) // batch
        mask = self.train.mask
        while epoch < options.epochs and idle < options.patience:
            order = permutation(len(inputs[0]), self.seed, "block", number, epoch)
            for step in range(per_epoch):
                together = order[step * batch : (step + 1) * batch]
                count = _count(mask[together], inputs[0])
                gradients = GradientSum(self.processes, parameters, pieces)
                made = {}
                for piece in self.processes.own_pieces(pieces):
                    at = together[piece * options.batch : (piece + 1) * options.batch]
                    output = self._run(number, block.module, self.train, inputs[0], at)
                    loss = _squared(output, targets[0][at], mask[at]) / count
                    made[piece] = float(loss.detach())
                    loss.backward()  # type: ignore[no-untyped-call]
                    gradients.add(piece)
                value = sum(self.processes.gathered(made, pieces))
                if not math.isfinite(value):  # back to the last good state, without momentum
                    restore(parameters, best)
                    still = Adam(parameters, options.betas)
                    self._keep(number, epoch, idle, first, least, still, best, done)
                self._check_finite(value, number, epoch, step)
                gradients.finish()
                adam.step(
                    rate(
                        epoch * per_epoch + step,
                        options.epochs * per_epoch,
                        lr=options.lr,
                        warmup=options.warmup,
                        schedule=options.schedule,
                    )
                )
                self._emit_batch(number, epoch + 1, step + 1, per_epoch)
            epoch += 1
            held = self._held_out(number, block, inputs[1], targets[1])
            if held < least:
                least, idle = held, 0
                best = {name: value.detach().clone() for name, value in parameters.items()}
            else:
                idle += 1
            if self.state.due():
                self._keep(number, epoch, idle, first, least, adam, best, done)
        restore(parameters, best)
        return BlockDone(
            block=number, blocks=len(self.blocks), before=first, after=least, epochs=epoch
        )

    def _held_out(self, number: int, block: Block, inputs: Tensor, targets: Tensor) -> float:
        """Mean squared error on the held-out sequences."""
        mask, batches = self.held_out.mask, self._batches(len(inputs))
        made = {}
        with torch.no_grad():
            for piece in self.processes.own_pieces(len(batches)):
                at = batches[piece]
                output = self._run(number, block.module, self.held_out, inputs, at)
                made[piece] = float(_squared(output, targets[at], mask[at]))
        return sum(self.processes.gathered(made, len(batches))) / _count(mask, inputs)

    def _keep(
        self,
        number: int,
        epoch: int,
        idle: int,
        first: float,
        least: float,
        adam: Adam,
        best: dict[str, Tensor],
        done: list[BlockDone],
    ) -> None:
        position = {
            "block": number,
            "epoch": epoch,
            "idle": idle,
            "before": first,
            "least": least,
            "blocks": done,
        }
        tensors = {f"adam/{name}": value for name, value in adam.state().items()}
        tensors |= {f"best/{name}": value for name, value in best.items()}
        self._save(position, tensors)

    def _save(self, position: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        blocks = [plain_of(entry) for entry in position["blocks"]]
        tuned = {f"tuned/{name}": value for name, value in self.tunable.parameters()}
        self.state.save({**position, "stage": "block", "blocks": blocks}, tensors | tuned)

    def _check_finite(self, value: float, number: int, epoch: int, step: int) -> None:
        if not math.isfinite(value):
            raise FinetuneError(
                f"the loss is {value} in block {number}, pass {epoch}, step {step}",
                location=self.blocks[number].path,
                note=f"the last good state is kept in {self.state.path}",
                hint="give a smaller learning rate",
            )

    def _batches(self, count: int) -> list[slice]:
        return [slice(at, at + self.options.batch) for at in range(0, count, self.options.batch)]


def plain_of(entry: BlockDone) -> dict[str, Any]:
    """A finished block as plain data."""
    return {
        "block": entry.block,
        "blocks": entry.blocks,
        "before": entry.before,
        "after": entry.after,
        "epochs": entry.epochs,
    }


def _squared(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Summed squared error over real tokens, in float32."""
    wrong = (output.float() - target.to(output.device).float()).square().sum(-1)  # [b, t]
    return (wrong * mask.to(wrong.device)).sum()


def _count(mask: Tensor, states: Tensor) -> int:
    """Numbers of the states [..., d] of real tokens."""
    return int(mask.sum()) * states.shape[-1]
