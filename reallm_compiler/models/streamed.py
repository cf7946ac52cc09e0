"""The model of a checkpoint, of which one block is in memory at a time.

What lies outside of the blocks (embeddings, the last norm, the head) is read once and stays. Where
blocks cannot be told apart, or the checkpoint stores their tensors joined with others, the whole
model is read and stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import ReallmError
from reallm_compiler.models.blocks import Block, UnfitBlocksError, find_blocks
from reallm_compiler.models.build import ModelFiles, Stored, build_model
from reallm_compiler.models.joined import Conversion, Location, conversions, plain_locations
from reallm_compiler.models.names import modules_of, parameter_names
from reallm_compiler.models.source import source_files
from reallm_compiler.models.weights import Weights
from reallm_compiler.system import free_memory


@dataclass(frozen=True, slots=True)
class _Part:
    """How some parameters are read.

    Attributes:
        plain: the checkpoint's tensor of each parameter that is one as it is.
        joined: conversions, each with the parameters that it makes.
    """

    plain: Mapping[str, str]
    joined: Sequence[tuple[Conversion, Sequence[str]]]

    @property
    def parameters(self) -> list[str]:
        """The parameters that it fills."""
        return [*self.plain, *(name for _, made in self.joined for name in made)]

    @property
    def tensors(self) -> list[str]:
        """The tensors that it reads."""
        joined = [tensor for one, _ in self.joined for tensor, _ in one.tensors]
        return [*self.plain.values(), *joined]


class StreamedModel:
    """A frozen model in float32.

    Args:
        inventory: of the checkpoint.
        facts: its matrices of interest.
        device: where it runs.
        factors: those that are folded into the inventory's tensors, by name; None without any.
        whole: keep all of it in memory.
        error: class of what is raised if memory is too small.

    Attributes:
        files: what it is made of.
        model: the model.
        blocks: its blocks; none if it is always whole.
        weights: what reads the checkpoint, with digests of all that was read of blocks.
        unknown: matrices that are no parameters of the model as they are.

    Raises:
        SourceError: the checkpoint is no model that transformers knows, or does not fit it.
        ReallmError: of the class `error`: memory is too small for what stays in it.
    """

    def __init__(
        self,
        inventory: Inventory,
        facts: Sequence[MatrixFact],
        device: torch.device,
        factors: Callable[[str], Tensor] | None = None,
        *,
        whole: bool = False,
        error: type[ReallmError],
    ) -> None:
        self.files: ModelFiles = source_files(inventory, inventory.path)
        self.weights = Weights(inventory, factors)
        self._device = device
        empty = meta_model(self.files.config, inventory.path)
        parameter_of = parameter_names(empty, self.files.tensors)
        shapes = {name: tuple(value.shape) for name, value in empty.named_parameters()}
        self._tensor_of = {fact.name: fact.tensor for fact in facts}
        of_tensor = {
            tensor: list(group) for tensor, group in groupby(facts, key=lambda fact: fact.tensor)
        }
        self._inside = {
            parameter_of[tensor]: plain_locations(group)
            for tensor, group in of_tensor.items()
            if shapes.get(parameter_of.get(tensor, "")) == self.weights.by_name[tensor].shape
        }
        stored = {name: spec.shape for name, spec in self.weights.by_name.items()}
        joined: list[tuple[Conversion, list[str]]] = []
        for one in conversions(empty, self.files.tensors):
            found = one.locations(stored, of_tensor, shapes)
            if found is not None:
                self._inside |= found
                joined.append((one, list(found)))
        known = {one.name for inside in self._inside.values() for one in inside}
        self.unknown = tuple(fact.name for fact in facts if fact.name not in known)
        tensor_of = {parameter: tensor for tensor, parameter in parameter_of.items()}
        paths = [] if whole else _find_block_paths(empty, facts)
        self._streamed = _streamed(empty, paths, tensor_of, joined, self.weights)
        self._check_memory(error)
        self.model: Any = build_model(self._without(shapes), torch.float32)
        self.model.requires_grad_(False).eval()
        if device.type == "cuda":  # fused kernels there sum in any order on the way back
            self.model.set_attn_implementation("eager")
        if hasattr(self.model, "set_experts_implementation"):
            # Experts one after the other: each product is that of one matrix.
            self.model.set_experts_implementation("eager")
        self.blocks = [Block(path, self.model.get_submodule(path), {}) for path in paths]
        self._parameters = dict(self.model.named_parameters())
        streamed = [name for part in self._streamed for name in part.parameters]
        self._blank = {name: self._parameters[name].data for name in streamed}
        self._to_device()

    @contextmanager
    def loaded(self, number: int) -> Iterator[nn.Module]:
        """A block with its weights, which are let go at the end.

        Raises:
            SourceError: a tensor cannot be read.
        """
        parts = self._streamed[number : number + 1]
        for part in parts:
            self._fill(part)
        try:
            yield self.blocks[number].module
        finally:
            for part in parts:
                self._empty(part)

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Meanwhile the model can be called: each block is read when it is reached."""
        held: list[_Part] = []

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
        streamed = {tensor for part in self._streamed for tensor in part.tensors}
        return [name for name in self.files.tensors if name not in streamed]

    def tensor_of(self, matrix: str) -> str:
        """The checkpoint's tensor that a matrix is, or is a part of."""
        return self._tensor_of[matrix]

    def block_bytes(self) -> int:
        """The most bytes of weights that are in memory at once in a block."""
        return max((self._bytes(part) for part in self._streamed), default=0)

    def kept_bytes(self) -> int:
        """Bytes of the weights that stay in memory."""
        streamed = {name for part in self._streamed for name in part.parameters}
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

    def locations(self, number: int) -> dict[str, list[Location]]:
        """Where matrices lie in the parameters of a block, by their names in it."""
        prefix = self.blocks[number].path + "."
        return {
            parameter.removeprefix(prefix): found
            for parameter, found in self._inside.items()
            if parameter.startswith(prefix)
        }

    def tensors_of(self, number: int) -> dict[str, str]:
        """The checkpoint's tensor of each parameter of a block that is one as it is."""
        prefix = self.blocks[number].path + "."
        plain = self._streamed[number].plain
        return {parameter.removeprefix(prefix): tensor for parameter, tensor in plain.items()}

    def _check_memory(self, error: type[ReallmError]) -> None:
        """Refuse a model of which more would stay in memory than is free.

        Raises:
            ReallmError: as said.
        """
        kept = sum(4 * self.weights.by_name[tensor].count for tensor in self.kept_tensors())
        free = free_memory()
        if free is not None and kept > free:
            raise error(
                f"memory is too small: {kept >> 20:,} MiB of weights stay in memory and "
                f"{free >> 20:,} MiB are free",
                location=self.files.label,
                note=None
                if self._streamed
                else "the blocks of this model cannot be read one by one",
                hint="use a machine with more memory",
            )

    def _bytes(self, part: _Part) -> int:
        return sum(4 * self.weights.by_name[tensor].count for tensor in part.tensors)

    def _without(self, shapes: Mapping[str, tuple[int, ...]]) -> ModelFiles:
        """The files with placeholders, which take no memory, for what is read block by block."""
        tensors = dict(self.files.tensors)
        for part in self._streamed:
            for tensor in part.plain.values():
                tensors[tensor] = _placeholder(self.weights.by_name[tensor].shape)
            for one, made in part.joined:
                for tensor, _ in one.tensors:
                    del tensors[tensor]
                tensors |= {name: _placeholder(shapes[name]) for name in made}
        return replace(self.files, tensors=tensors)

    def _to_device(self) -> None:
        """Move all that stays, and remember where matrices lie in it."""
        streamed = {name for part in self._streamed for name in part.parameters}
        for name, value in self._parameters.items():
            if name not in streamed:
                value.data = value.data.to(self._device).contiguous()
                self._filled(value.data, self._inside.get(name, []))
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self._device)

    def _fill(self, part: _Part) -> None:
        for parameter, tensor in part.plain.items():
            self._set(parameter, self._read(tensor))
        for one, made in part.joined:
            values = one.run(self._read)
            for parameter in made:
                self._set(parameter, values.pop(parameter))

    def _read(self, tensor: str) -> Tensor:
        return self.weights.tensor(tensor, "f32")

    def _set(self, parameter: str, values: Tensor) -> None:
        data = values.to(self._device).contiguous()
        self._parameters[parameter].data = data
        self._filled(data, self._inside.get(parameter, []))

    def _empty(self, part: _Part) -> None:
        for parameter in part.parameters:
            self._emptied(self._parameters[parameter].data)
            self._parameters[parameter].data = self._blank[parameter]

    def _filled(self, data: Tensor, inside: list[Location]) -> None:
        """A parameter has got its weights, in which these matrices lie."""

    def _emptied(self, data: Tensor) -> None:
        """The weights of a parameter are let go."""


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
    model: nn.Module,
    paths: Sequence[str],
    tensor_of: Mapping[str, str],
    joined: Sequence[tuple[Conversion, Sequence[str]]],
    weights: Weights,
) -> list[_Part]:
    """How each block is read, if no parameter of any block is also one of another module."""
    uses = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    made_by = {name: number for number, (_, made) in enumerate(joined) for name in made}
    found = []
    for path in paths:
        plain, numbers = {}, set()
        for name, value in model.get_submodule(path).named_parameters(path):
            tensor = tensor_of.get(name)
            if uses[id(value)] > 1:
                return []
            if tensor is not None and weights.by_name[tensor].shape == tuple(value.shape):
                plain[name] = tensor
            elif name in made_by:
                numbers.add(made_by[name])
            else:
                return []
        chosen = [joined[number] for number in sorted(numbers)]
        if not all(name.startswith(f"{path}.") for _, made in chosen for name in made):
            return []
        found.append(_Part(plain, chosen))
    return found


def _placeholder(shape: tuple[int, ...]) -> Stored:
    return Stored(torch.float32, lambda: _blank(shape))


def _blank(shape: tuple[int, ...]) -> Tensor:
    """Zeros that share one number."""
    return torch.zeros(()).expand(shape)
