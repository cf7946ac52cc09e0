"""Tensors of a checkpoint that transformers joins or splits into parameters on loading.

Mixtral stores three matrices for each expert where the model has two stacks for all of them. What
becomes of a tensor is asked of transformers' own conversion: it is run on small tensors of numbered
elements, whose numbers then show where each matrix lies.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.checkpoint import MatrixFact
from reallm_compiler.models.names import conversion_steps


@dataclass(frozen=True, slots=True)
class Location:
    """Where a matrix [p, q] lies in a contiguous parameter.

    Attributes:
        name: the matrix.
        shape: (p, q).
        offset: of its first element, in elements.
        strides: of its rows and columns, in elements.
    """

    name: str
    shape: tuple[int, int]
    offset: int
    strides: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """Some tensors that become some parameters.

    Attributes:
        tensors: the checkpoint's, each with the pattern that it matches, in order.
        target: the name by which transformers knows the conversion.
        converter: its object.
        model: the model that it is of.
    """

    tensors: tuple[tuple[str, str], ...]
    target: str
    converter: Any
    model: Any

    def run(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters by name, of tensors as `read` gives them."""
        steps = copy.deepcopy(self.converter)
        for tensor, pattern in self.tensors:
            steps.add_tensor(self.target, tensor, pattern, lambda tensor=tensor: read(tensor))
        made: dict[str, Any] = steps.convert(
            self.target, model=self.model, config=self.model.config
        )
        return {
            name: value[0] if isinstance(value, list) else value for name, value in made.items()
        }

    def locations(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        facts: Mapping[str, Sequence[MatrixFact]],
        parameters: Mapping[str, tuple[int, ...]],
    ) -> dict[str, list[Location]] | None:
        """Where matrices lie in the parameters that the tensors become.

        Args:
            shapes: of the checkpoint's tensors.
            facts: the matrices of each tensor.
            parameters: shapes of the model's parameters.

        Returns:
            The matrices in each parameter; None if the conversion does more than move them.
        """
        small = _small([shapes[tensor] for tensor, _ in self.tensors])
        first, numbered = 0, {}
        for (tensor, _), extents in zip(self.tensors, small, strict=True):
            count = math.prod(extents)
            numbered[tensor] = torch.arange(first, first + count).reshape(extents)
            first += count
        try:
            made = self.run(numbered.__getitem__)
        except Exception:  # a conversion that knows real shapes alone
            return None
        if not all(_fits(value, parameters.get(name)) for name, value in made.items()):
            return None
        found: dict[str, list[Location]] = {name: [] for name in made}
        for tensor, _ in self.tensors:
            for fact in facts.get(tensor, ()):
                here = _find(fact, numbered[tensor], made, parameters)
                if here is None:
                    return None
                found[here[0]].append(here[1])
        return found


def conversions(model: Any, tensors: Iterable[str]) -> list[Conversion]:  # noqa: ANN401
    """The conversions that a model makes on loading tensors of a checkpoint, in natural order."""
    loading: Any = importlib.import_module("transformers.core_model_loading")
    renamings, converters = conversion_steps(model)
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    known = model.state_dict()
    found: dict[str, list[tuple[str, str]]] = {}
    for tensor in tensors:
        name, pattern = loading.rename_source_key(
            tensor, renamings, converters, model.base_model_prefix, known
        )
        if pattern is not None:
            found.setdefault(name, []).append((tensor, pattern))
    return [
        Conversion(
            tensors=tuple(members), target=name, converter=by_pattern[members[0][1]], model=model
        )
        for name, members in found.items()
    ]


def plain_locations(facts: Iterable[MatrixFact]) -> list[Location]:
    """Where the matrices of one tensor lie in a parameter of the tensor's own shape."""
    found = []
    for fact in facts:
        p, q = fact.shape
        strides = (1, p) if fact.transposed else (q, 1)
        found.append(Location(fact.name, fact.shape, (fact.index or 0) * p * q, strides))
    return found


def _small(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes with their last two extents divided by what all of them share, times two."""
    shared = [math.gcd(*(shape[axis] for shape in shapes if len(shape) > 1)) for axis in (-2, -1)]
    return [
        (*shape[:-2], *(2 * shape[axis] // shared[axis] for axis in (-2, -1)))
        if len(shape) > 1
        else shape
        for shape in shapes
    ]


def _fits(small: Tensor, real: tuple[int, ...] | None) -> bool:
    """Whether the parameter of a small conversion is the real one with smaller extents."""
    if real is None or small.dim() != len(real):
        return False
    return all(2 * extent % part == 0 for part, extent in zip(small.shape, real, strict=True))


def _find(
    fact: MatrixFact,
    numbered: Tensor,
    made: Mapping[str, Tensor],
    parameters: Mapping[str, tuple[int, ...]],
) -> tuple[str, Location] | None:
    """The parameter that a matrix lies in, and where; None if it is not there in one piece."""
    source = numbered if fact.index is None else numbered[fact.index]
    source = source.T if fact.transposed else source
    for name, values in made.items():
        corners = [
            (values == source[row, column]).nonzero() for row, column in ((0, 0), (1, 0), (0, 1))
        ]
        if not all(len(corner) == 1 for corner in corners):
            continue
        start, down, right = (corner[0] for corner in corners)
        steps = (down - start, right - start)
        if any(int(step.abs().sum()) != 1 or int(step.sum()) != 1 for step in steps):
            return None
        real = parameters[name]
        strides = [math.prod(real[axis + 1 :]) for axis in range(len(real))]
        scaled = [
            int(index) * extent // part
            for index, extent, part in zip(start, real, values.shape, strict=True)
        ]
        row, column = (strides[int(step.argmax())] for step in steps)
        offset = sum(index * stride for index, stride in zip(scaled, strides, strict=True))
        return name, Location(fact.name, fact.shape, offset, (row, column))
    return None
