"""What a packed weight is made of: matrices in their sections, or dense once they were written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from reallm_compiler.kernels.packed import parse_form
from reallm_compiler.runtime import ops


class Piece(NamedTuple):
    """A matrix [p, q] of a weight.

    Attributes:
        sections: its section tensors; the dense matrix alone where `form` is empty.
        form: `PackedForm.text`.
    """

    sections: tuple[Tensor, ...]
    form: str

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q)."""
        if self.form:
            return parse_form(self.form).shape
        return self.sections[0].shape[0], self.sections[0].shape[1]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias."""
        if not self.form:
            return torch.nn.functional.linear(x, self.sections[0].to(x.dtype), bias)
        return ops.linear(x, self.sections, self.form, bias)

    def transposed(self, x: Tensor) -> Tensor:
        """x W."""
        if not self.form:
            return x @ self.sections[0].to(x.dtype)
        y: Tensor = torch.ops.reallm.transposed(x, list(self.sections), self.form)
        return y

    def dense(self, dtype: torch.dtype, first: int = 0, last: int | None = None) -> Tensor:
        """The decoded matrix [p, q], or its rows [first, last)."""
        if not self.form:
            return self.sections[0][first:last].to(dtype)
        rows: Tensor = torch.ops.reallm.dequantize(
            list(self.sections), self.form, dtype, first, last
        )
        return rows

    def moved(self, device: torch.device) -> Piece:
        """The same on another device."""
        return Piece(tuple(section.to(device) for section in self.sections), self.form)


class Pieces:
    """The pieces of a weight; its aliases (`detach`, `t`) share them, also when it is written."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)

    def copy(self) -> Pieces:
        """Pieces that are written apart from these; sections are shared, as nobody writes them."""
        return Pieces(
            piece if piece.form else Piece((piece.sections[0].clone(),), "")
            for piece in self.pieces
        )
