"""The model of a checkpoint, of which one block is in memory at a time.

What lies outside of the blocks (embeddings, the last norm, the head) is read once and stays. Where
blocks cannot be told apart, or the checkpoint stores their tensors joined with others, the whole
model is read and stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.calibration.products import Location, Memory, locations
from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.models.blocks import Block, UnfitBlocksError, find_blocks
from reallm_compiler.models.build import ModelFiles, Stored, build_model
from reallm_compiler.models.names import modules_of, parameter_names
from reallm_compiler.models.source import source_files
from reallm_compiler.models.weights import Weights

_Tensors = Mapping[str, str]
"""The checkpoint's tensor of each parameter."""


class Original:
    """A frozen model in float32.

    Args:
        inventory: of the checkpoint.
        facts: the matrices to measure.
        device: where it runs.
        whole: keep all of it in memory.

    Attributes:
        files: what it is made of.
        model: the model.
        blocks: its blocks; none if it is always whole.
        memory: where the matrices lie that are in memory now.
        weights: what reads the checkpoint, with digests of all that was read of blocks.
        unknown: matrices that are no parameters of the model as they are.

    Raises:
        SourceError: the checkpoint is no model that transformers knows, or does not fit it.
    """

    def __init__(
        self,
        inventory: Inventory,
        facts: Sequence[MatrixFact],
        device: torch.device,
        *,
        whole: bool = False,
    ) -> None:
        self.files: ModelFiles = source_files(inventory, inventory.path)
        self.weights = Weights(inventory)
        self._device = device
        empty = meta_model(self.files.config, inventory.path)
        parameter_of = parameter_names(empty, self.files.tensors)
        shapes = {name: tuple(value.shape) for name, value in empty.named_parameters()}
        inside = {
            tensor: list(locations(group))
            for tensor, group in groupby(facts, key=lambda fact: fact.tensor)
            if shapes.get(parameter_of.get(tensor, "")) == self.weights.by_name[tensor].shape
        }
        self._tensor_of = {fact.name: fact.tensor for fact in facts}
        self._inside = {parameter_of[tensor]: found for tensor, found in inside.items()}
        self.unknown = tuple(fact.name for fact in facts if fact.tensor not in inside)
        tensor_of = {parameter: tensor for tensor, parameter in parameter_of.items()}
        paths = [] if whole else _find_block_paths(empty, facts)
        self._streamed = _streamed(empty, paths, tensor_of, self.weights)
        self.model: Any = build_model(self._without(self._streamed), torch.float32)
        self.model.requires_grad_(False).eval()
        if hasattr(self.model, "set_experts_implementation"):
            # Experts one after the other: each product is that of one matrix.
            self.model.set_experts_implementation("eager")
        self.blocks = [Block(path, self.model.get_submodule(path), {}) for path in paths]
        self._parameters = dict(self.model.named_parameters())
        self._blank = {
            name: self._parameters[name].data for part in self._streamed for name in part
        }
        self.memory = Memory()
        self._to_device()

    @contextmanager
    def loaded(self, number: int) -> Iterator[nn.Module]:
        """A block with its weights, which are let go at the end.

        Raises:
            SourceError: a tensor cannot be read.
        """
        tensors = self._streamed[number] if self._streamed else {}
        self._fill(tensors)
        try:
            yield self.blocks[number].module
        finally:
            self._empty(tensors)

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Meanwhile the model can be called: each block is read when it is reached."""
        held: list[_Tensors] = []

        def release() -> None:
            while held:
                self._empty(held.pop())

        def reached(number: int, module: nn.Module) -> None:
            if "forward" not in vars(module):  # else the block is left out
                release()
                self._fill(self._streamed[number])
                held.append(self._streamed[number])

        hooks = [
            self.blocks[number].module.register_forward_pre_hook(
                lambda module, args, number=number: reached(number, module)
            )
            for number in range(len(self._streamed))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            release()

    def kept_tensors(self) -> list[str]:
        """The checkpoint's tensors that are not read block by block."""
        streamed = {tensor for tensors in self._streamed for tensor in tensors.values()}
        return [name for name in self.files.tensors if name not in streamed]

    def tensor_of(self, matrix: str) -> str:
        """The checkpoint's tensor that a matrix is, or is a part of."""
        return self._tensor_of[matrix]

    def block_bytes(self) -> int:
        """The most bytes of weights that are in memory at once in a block."""
        return max((self._bytes(tensors) for tensors in self._streamed), default=0)

    def kept_bytes(self) -> int:
        """Bytes of the weights that stay in memory."""
        streamed = {name for tensors in self._streamed for name in tensors}
        return sum(
            4 * value.numel() for name, value in self._parameters.items() if name not in streamed
        )

    def matrices_in(self, number: int) -> list[str]:
        """The matrices that lie in a block."""
        prefix = self.blocks[number].path + "."
        return [
            one.name
            for parameter, found in self._inside.items()
            if parameter.startswith(prefix)
            for one in found
        ]

    def _bytes(self, tensors: _Tensors) -> int:
        return sum(4 * self.weights.by_name[tensor].count for tensor in tensors.values())

    def _without(self, streamed: Sequence[_Tensors]) -> ModelFiles:
        """The files with placeholders, which take no memory, for what is read block by block."""
        named = {tensor for tensors in streamed for tensor in tensors.values()}
        return replace(
            self.files,
            tensors={
                name: _placeholder(self.weights.by_name[name].shape) if name in named else stored
                for name, stored in self.files.tensors.items()
            },
        )

    def _to_device(self) -> None:
        """Move all that stays, and remember where matrices lie in it."""
        streamed = {name for tensors in self._streamed for name in tensors}
        for name, value in self._parameters.items():
            if name not in streamed:
                value.data = value.data.to(self._device).contiguous()
                self._remember(name)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self._device)

    def _fill(self, tensors: _Tensors) -> None:
        for parameter, tensor in tensors.items():
            values = self.weights.tensor(tensor, "f32")
            self._parameters[parameter].data = values.to(self._device)
            self._remember(parameter)

    def _empty(self, tensors: _Tensors) -> None:
        for parameter in tensors:
            self.memory.remove(self._parameters[parameter].data)
            self._parameters[parameter].data = self._blank[parameter]

    def _remember(self, parameter: str) -> None:
        found: list[Location] = self._inside.get(parameter, [])
        if found:
            self.memory.add(self._parameters[parameter].data, found)


def _find_block_paths(model: nn.Module, facts: Sequence[MatrixFact]) -> list[str]:
    """The blocks of a model; none if most of its matrices lie in no list of modules."""
    layers = {
        name: model.get_submodule(paths[0])
        for name, paths in modules_of(model, facts).items()
        if paths
    }
    try:
        return [block.path for block in find_blocks(model, layers)]
    except UnfitBlocksError:
        return []


def _streamed(
    model: nn.Module, paths: Sequence[str], tensor_of: _Tensors, weights: Weights
) -> list[_Tensors]:
    """The tensors of each block, if each parameter of every block is one that no other shares."""
    places: dict[int, int] = {}
    for _, value in model.named_parameters(remove_duplicate=False):
        places[id(value)] = places.get(id(value), 0) + 1
    found: list[_Tensors] = []
    for path in paths:
        tensors = {}
        for name, value in model.get_submodule(path).named_parameters(path):
            tensor = tensor_of.get(name)
            if tensor is None or places[id(value)] > 1:
                return []
            if weights.by_name[tensor].shape != tuple(value.shape):
                return []
            tensors[name] = tensor
        found.append(tensors)
    return found


def _placeholder(shape: tuple[int, ...]) -> Stored:
    return Stored(torch.float32, lambda: _blank(shape))


def _blank(shape: tuple[int, ...]) -> Tensor:
    """Zeros that share one number."""
    return torch.zeros(()).expand(shape)
