"""Products with a matrix of the checkpoint, seen wherever a model's code makes them.

A matrix is known by the memory that it lies in, so it does not matter whether a linear layer
multiplies by it, an expert of a stack, or a function of a library that is handed a view of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reallm_compiler.models.joined import Location

Rows = tuple[int, int]


class Memory:
    """Which matrices lie in which memory."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Sequence[Location]]] = {}

    def add(self, values: Tensor, inside: Sequence[Location]) -> None:
        """The matrices `inside` lie in the contiguous tensor `values`, which is held meanwhile."""
        self._known[_storage(values)] = (values, sorted(inside, key=_offset))

    def remove(self, values: Tensor) -> None:
        """Forget what lies in `values`."""
        self._known.pop(_storage(values), None)

    def find(self, weight: Tensor) -> list[tuple[str, Rows]]:
        """The matrices whose rows are rows of `weight` [outputs, inputs], and which rows."""
        entry = self._known.get(_storage(weight))
        if entry is None or weight.dim() != 2:
            return []
        values, inside = entry
        start = int(weight.storage_offset()) - int(values.storage_offset())
        outputs, inputs = weight.shape
        row, column = (int(stride) for stride in weight.stride())
        found = []
        for index in range(bisect_left(inside, start, key=_offset), len(inside)):
            one = inside[index]
            if one.offset > start + row * (outputs - 1):
                break
            first, odd = divmod(one.offset - start, row or 1)
            fits = one.strides == (row, column) and one.shape[1] == inputs
            if fits and not odd and first + one.shape[0] <= outputs:
                found.append((one.name, (first, first + one.shape[0])))
        return found


@dataclass(frozen=True, slots=True)
class Product:
    """One product y = W x of a matrix.

    Attributes:
        name: the matrix W [p, q].
        inputs: x, [n, q].
        output: the tensor that holds y, of any shape.
        part: takes y [n, p] out of a tensor of the shape of `output`.
    """

    name: str
    inputs: Tensor
    output: Tensor
    part: Callable[[Tensor], Tensor]


class Products(TorchFunctionMode):
    """A context in which every product with a matrix that `memory` knows is reported.

    Args:
        memory: where matrices lie.
        on_products: is called with the products of one call, once their common output is there.
        gradients: let each output require a gradient, also where nothing before it does.
    """

    def __init__(
        self,
        memory: Memory,
        on_products: Callable[[Sequence[Product]], None],
        *,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self._memory = memory
        self._on_products = on_products
        self._gradients = gradients

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call `func`, and tell what it was if it is a product."""
        given = dict(kwargs or {})
        operands = _OPERANDS.get(func)
        if operands is None:
            return func(*args, **given)
        inputs, weight = operands(args, given)
        found = list(self._parts(inputs, weight))
        output = func(*args, **given)
        if not found:
            return output
        if self._gradients and torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()
        self._on_products([Product(name, x, output, part) for name, x, part in found])
        return output

    def _parts(
        self, inputs: Tensor, weight: Tensor
    ) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
        """Each matrix in `weight` [..., outputs, inputs], its inputs, its part of the output."""
        if weight.dim() == 2:
            for name, rows in self._memory.find(weight):
                yield name, inputs.detach().reshape(-1, inputs.shape[-1]), _rows_of(None, rows)
        elif weight.dim() == 3 and inputs.dim() == 3:
            for index, one in enumerate(weight):
                for name, rows in self._memory.find(one):
                    yield name, inputs[index].detach(), _rows_of(index, rows)


def _rows_of(index: int | None, rows: Rows) -> Callable[[Tensor], Tensor]:
    """Takes y [n, p] of some rows of a weight out of an output, of one of a batch by its index."""

    def part(output: Tensor) -> Tensor:
        one = output if index is None else output[index]
        return one.reshape(-1, one.shape[-1])[:, rows[0] : rows[1]]

    return part


def _offset(location: Location) -> int:
    return location.offset


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
    return given["input"], given["weight"]


def _product(
    first: int, names: tuple[str, str]
) -> Callable[[tuple[Any, ...], dict[str, Any]], tuple[Tensor, Tensor]]:
    """Operands that are given from position `first` on; the second is [inputs, outputs]."""

    def operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, args[first:], strict=False)) | kwargs
        left, right = given[names[0]], given[names[1]]
        return left, right.mT if right.dim() >= 2 else right

    return operands


_OPERANDS: Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], tuple[Tensor, Tensor]]] = {
    torch.nn.functional.linear: _linear,
    torch.matmul: _product(0, ("input", "other")),
    torch.Tensor.matmul: _product(0, ("input", "other")),
    torch.Tensor.__matmul__: _product(0, ("input", "other")),
    torch.mm: _product(0, ("input", "mat2")),
    torch.Tensor.mm: _product(0, ("input", "mat2")),
    torch.bmm: _product(0, ("input", "mat2")),
    torch.Tensor.bmm: _product(0, ("input", "mat2")),
    torch.addmm: _product(1, ("mat1", "mat2")),
    torch.Tensor.addmm: _product(1, ("mat1", "mat2")),
    torch.baddbmm: _product(1, ("batch1", "batch2")),
    torch.Tensor.baddbmm: _product(1, ("batch1", "batch2")),
}
"""Functions that multiply by a matrix: their inputs [..., q] and the matrix [..., p, q]."""
