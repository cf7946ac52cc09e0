"""The blocks of a model in order: what reaches the next one, in the original and as coded.

Two streams of hidden states [n, t, d] go through the blocks: those of the original model, and
those of the model with its blocks coded so far. A block is given the second and follows what the
original's makes of the first. Neither is stored: a run that goes on makes both again from the
checkpoint and from the coded sections, so that nothing has to be kept beside the archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import CompileError
from reallm_compiler.models.blocks import UnfitBlocksError, calls_of, hidden_states, run_block
from reallm_compiler.models.joined import Location
from reallm_compiler.models.streamed import StreamedModel
from reallm_compiler.planning.fit import FitBlock

PROBE = 16
"""Tokens on which it is tried whether blocks can be run one by one."""

Weights = Mapping[str, Tensor]
"""Tensors in place of a block's own: matrices [p, q] by name, and norms by their tensor's name."""


class Blocks:
    """The model whose blocks learn.

    Args:
        inventory: of the checkpoint, or of the prepared model, its factors folded.
        blocks: those whose matrices are coded together.
        ids: int64 [n, t], the text.
        batch: sequences that run at once.
        device: where it runs.
        factors: those that are folded, by name.

    Attributes:
        device: where it runs.
        number: of the block that comes next.
        original: [n, t, d], what reaches it in the original model.
        coded: [n, t, d], what reaches it when the blocks before it are as coded.

    Raises:
        CompileError: the blocks of this model cannot be run one by one, or memory is too small.
    """

    def __init__(
        self,
        inventory: Inventory,
        blocks: tuple[FitBlock, ...],
        ids: Tensor,
        batch: int,
        device: torch.device,
        factors: Callable[[str], Tensor] | None = None,
    ) -> None:
        names = {matrix.name for block in blocks for matrix in block.matrices}
        facts = [fact for fact in inventory.matrices() if fact.name in names]
        self._model = StreamedModel(inventory, facts, device, factors, error=CompileError)
        self._ids, self._batch, self.device = ids, batch, device
        self._targets: Tensor | None = None
        for block in blocks:
            self._check(block)
        try:
            with self._model.as_a_whole():
                rows = ids[[0, -1], :PROBE].to(device)
                self._calls = calls_of(self._model.model, self._model.blocks, rows)
        except UnfitBlocksError as error:
            raise _unfit(inventory.path, error.note) from error
        self.number = 0
        self.original = self.coded = torch.empty(0)
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first block."""
        first = self._model.blocks[0].module
        self.number, self._targets = 0, None
        self.original = torch.cat(
            [
                hidden_states(self._model.model, first, self._ids[at].to(self.device)).cpu()
                for at in self._batches()
            ]
        )
        self.coded = self.original.clone()

    @contextmanager
    def loaded(self) -> Iterator[Block]:
        """The next block with the original's weights."""
        with self._model.loaded(self.number) as module:
            yield Block(self, module)

    def targets(self, block: Block) -> Tensor:
        """[n, t, d], what the loaded block of the original makes of the original's stream."""
        if self._targets is None:
            self._targets = self._passed(block, self.original, {})
        return self._targets

    def advance(self, block: Block, weights: Weights) -> None:
        """Let both streams pass the loaded block, the second with these weights in it."""
        self.original = self.targets(block)
        self.coded = self._passed(block, self.coded, weights)
        self._targets = None
        self.number += 1

    def _passed(self, block: Block, hidden: Tensor, weights: Weights) -> Tensor:
        made = torch.empty_like(hidden)
        with torch.no_grad():
            for at in self._batches():
                made[at] = block.run(at, hidden, weights).cpu()
        return made

    def digests(self) -> dict[str, str]:
        """SHA-256 of what was read since the last call, by tensor."""
        return self._model.weights.take_digests()

    def _batches(self) -> Iterator[slice]:
        for at in range(0, len(self._ids), self._batch):
            yield slice(at, at + self._batch)

    def _check(self, block: FitBlock) -> None:
        """Refuse a block of which the model has no module that holds all its matrices."""
        label = self._model.files.label
        if block.number >= len(self._model.blocks):
            raise _unfit(label, "they are not in one list of modules, or share weights")
        inside = set(self._model.matrices_in(block.number))
        for matrix in block.matrices:
            if matrix.name not in inside:
                raise _unfit(label, f"{matrix.name} does not lie in block {block.number}")


class Block:
    """A loaded block."""

    def __init__(self, blocks: Blocks, module: nn.Module) -> None:
        self._blocks = blocks
        self._module = module
        self._number = blocks.number
        self._inside: dict[str, list[Location]] = blocks._model.locations(self._number)
        self._plain = blocks._model.tensors_of(self._number)
        self._own = dict(module.named_parameters())

    def run(self, at: slice | Tensor, hidden: Tensor, weights: Weights) -> Tensor:
        """The output [b, t, d] of the block on some sequences.

        Args:
            at: their indices.
            hidden: [n, t, d] of all.
            weights: in place of the original's; gradients reach them.
        """
        device = self._blocks.device
        call = self._blocks._calls.of(self._number, self._blocks._ids[at].to(device))
        given = self._parameters(weights)

        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return functional_call(self._module, given, args, kwargs)

        block: Callable[..., Any] = forward if given else self._module
        return run_block(block, hidden[at].to(device, copy=True), call)

    def _parameters(self, weights: Weights) -> dict[str, Tensor]:
        """The parameters that hold some of the weights."""
        found: dict[str, Tensor] = {}
        for parameter, inside in self._inside.items():
            held = [one for one in inside if one.name in weights]
            if held:
                value = self._own[parameter].detach()
                for one in held:
                    value = torch.as_strided_scatter(
                        value, weights[one.name], one.shape, one.strides, one.offset
                    )
                found[parameter] = value
        for parameter, tensor in self._plain.items():
            if parameter not in found and tensor in weights:
                found[parameter] = weights[tensor]
        return found


def _unfit(label: str, why: str | None) -> CompileError:
    return CompileError(
        "the blocks of this model cannot learn one by one",
        location=label,
        note=why,
        hint="leave `fit` out of the recipe",
    )
