"""Decoded scales s and zero points z, and how they lie on a latent: x = s y + z."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reallm_compiler.units import ceil_div

LARGEST = 65504.0
"""Bound on normalized values, float16's largest: a two-level scale may round far below its s."""


class ScaleField:
    """Decoded scales of a latent [p, q], and how they lie on it.

    Args:
        per: which weights share a scale: `tensor`, `row`, `column` or `block`.
        block: weights of a block.
        shape: p and q.
        scale: scales [groups], in the precision of the work.
        zero: zero points [groups], or None for zeros.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step = 1

    def __init__(
        self,
        *,
        per: str,
        block: int,
        shape: tuple[int, int],
        scale: Tensor,
        zero: Tensor | None = None,
    ) -> None:
        self.per = per
        self.block = block
        self.shape = shape
        self.scale = scale
        self.zero = zero

    def constant_within(self, dim: int, axis: str) -> bool:
        """Whether all elements of any vector of `dim` weights along `axis` share a scale."""
        if self.per == "tensor" or dim == 1:
            return True
        if axis == "rows":
            return self.per == "column"
        aligned = self.block % dim == 0 and self.shape[1] % dim == 0
        return self.per == "row" or (self.per == "block" and aligned)

    def normalize_(self, latent: Tensor) -> Tensor:
        """(latent - z) / s in place, 0 where s = 0; latent is [p, q]."""
        divisor = torch.where(self.scale > 0, self.scale, math.inf)
        for first, last in _panels(self.shape):
            rows = latent[first:last]
            if self.zero is not None:
                view, zero = self._aligned(rows, self.zero, first)
                view.sub_(zero)
            view, divide = self._aligned(rows, divisor, first)
            view.div_(divide).clamp_(-LARGEST, LARGEST)
        return latent

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """s x rows + z in place; rows [n, q] are rows first, first + 1, ... of the latent."""
        view, scale = self._aligned(rows, self.scale, first)
        view.mul_(scale)
        if self.zero is not None:
            view, zero = self._aligned(rows, self.zero, first)
            view.add_(zero)
        return rows

    def run(self) -> int:
        """Consecutive weights of whole rows that share a scale; 1 if they lie otherwise."""
        q = self.shape[1]
        if self.per == "block":
            return self.block if q % self.block == 0 else 1
        return {"tensor": q, "row": q, "column": 1}[self.per]

    def tables(self, levels: Tensor, first: int, last: int) -> Tensor:
        """s x levels + z of each run of rows [first, last): [runs, levels]; see `run`."""
        each = self.shape[1] // self.run()  # runs of a row

        def column(values: Tensor) -> Tensor:
            if self.per == "tensor":
                return values.view(1, 1).expand(last - first, 1)
            return values[first * each : last * each, None]

        tables = levels * column(self.scale)
        return tables if self.zero is None else tables.add_(column(self.zero))

    def rows(self, first: int, last: int) -> Tensor:
        """The scale of each weight of rows [first, last): [last - first, q]."""
        wide = torch.ones(
            last - first, self.shape[1], dtype=self.scale.dtype, device=self.scale.device
        )
        view, scale = self._aligned(wide, self.scale, first)
        view.mul_(scale)
        return wide

    @property
    def largest(self) -> float:
        """The largest scale; 1 if all are 0."""
        return float(self.scale.max()) or 1.0

    def factors(self, first: int, last: int, largest: float) -> Tensor:
        """Scales of rows [first, last) in terms of `largest`, float32 [last - first, q].

        One row stands for all where a row's scales are those of every other.
        """
        last = first + 1 if self.per in ("column", "tensor") else last
        return self.rows(first, last).div_(largest).to(torch.float32)

    def zero_rows(self, first: int, last: int) -> Tensor | None:
        """Zero points of the weights of rows [first, last): [last - first, q]; None for zeros."""
        if self.zero is None:
            return None
        wide = torch.zeros(
            last - first, self.shape[1], dtype=self.zero.dtype, device=self.zero.device
        )
        view, zero = self._aligned(wide, self.zero, first)
        view.add_(zero)
        return wide

    def at(self, row: Tensor, column: Tensor) -> Tensor:
        """The scale of the weights at (row, column), index tensors of one shape."""
        group = {
            "tensor": torch.zeros_like(row),
            "row": row,
            "column": column,
            "block": (row * self.shape[1] + column).div(self.block, rounding_mode="floor"),
        }[self.per]
        return self.scale[group]

    def mean_square(self, unit: float = 1.0) -> float:
        """Mean of (s / unit)^2 over the weights."""
        p, q = self.shape
        squares = (self.scale.to(torch.float64) / unit).square()
        if self.per != "block":
            return float(squares.mean())
        tail = p * q - (len(squares) - 1) * self.block  # weights of the last block
        return float((squares[:-1].sum() * self.block + squares[-1] * tail) / (p * q))

    def _aligned(self, rows: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """A view of `rows` [n, q] and a view of `values` [groups] that broadcast together."""
        if self.per == "tensor":
            return rows, values.view(1, 1)
        if self.per == "column":
            return rows, values.view(1, -1)
        count, q = rows.shape
        if self.per == "row":
            return rows, values[first : first + count, None]
        if q % self.block == 0:
            # [n, blocks of a row, block] and [n, blocks of a row, 1]
            grid = values.view(-1, q // self.block)[first : first + count, :, None]
            return rows.view(count, -1, self.block), grid
        start = first * q
        group, last_group = start // self.block, ceil_div(start + count * q, self.block)
        wide = values[group:last_group].repeat_interleave(self.block)
        skip = start - group * self.block
        return rows, wide[skip : skip + count * q].view(count, q)


def _panels(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Ranges of rows of about a million weights."""
    p, q = shape
    step = max(1, (1 << 20) // max(q, 1))
    return [(first, min(first + step, p)) for first in range(0, p, step)]
