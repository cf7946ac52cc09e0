"""Monarch residual: a product of two block-diagonal matrices with a fixed permutation between them.

    M[i, j] = L[i, b(j)] R[i mod k, j],      b(j) the block of column j

Each of the k x k blocks, rows i = a mod k and columns of block b, is a matrix of rank one, so the
nearest M to a matrix is found block by block: a truncated SVD of each (Dao et al. 2022, Monarch,
section 3.3 and appendix). A ragged edge makes some blocks smaller and needs no padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import PANEL, ResidualCodec, ResidualTerm, Shape
from reallm_compiler.codecs.numerics.codebooks import INT8_LEVELS
from reallm_compiler.codecs.numerics.numbers import norm, stored, unit
from reallm_compiler.codecs.residuals.low_rank import HINT, truncated_svd
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.statistics import Metric
from reallm_compiler.stages import Monarch
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.monarch import blocks_of
from reallm_compiler.units import ceil_div

EXACT_BELOW = 256
"""Extent of a block up to which all blocks of some rows are decomposed together."""


class MonarchTerm(ResidualTerm):
    """M of two factors.

    Args:
        left: L [p, k].
        right: R [k, q].
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._left = left
        self._right = right
        self._width = ceil_div(right.shape[1], left.shape[1])

    def _rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of M."""
        k, q = self._right.shape
        row = torch.arange(first, last, device=self._right.device)
        left = self._left[first:last].repeat_interleave(self._width, dim=1)[:, :q]
        return left * self._right[row % k]

    def add_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of M added to `rows` [n, q] in place."""
        return rows.add_(self._rows(first, first + len(rows)))

    def add_product_(self, x: Tensor, y: Tensor) -> Tensor:
        """x M^T of activations x [n, q] added to `y` [n, p] in place."""
        (k, q), p = self._right.shape, len(self._left)
        pad, missing = torch.nn.functional.pad, self._width * k - q
        right = pad(self._right, (0, missing)).view(k, k, -1)
        # [n, k, k]: what the rows of R in each block of columns make of the inputs
        inner = torch.einsum("ncw,rcw->nrc", pad(x, (0, missing)).view(len(x), k, -1), right)
        left = pad(self._left, (0, 0, 0, -p % k)).view(-1, k, k)
        found = torch.einsum("nrc,irc->nir", inner, left)
        return y.add_(found.reshape(len(x), -1)[:, :p])

    def taken_from(self, weight: Tensor) -> Tensor:
        """`weight` [p, q] less M, a fresh tensor."""
        rest = weight.clone()
        step = max(1, PANEL // weight.shape[1])
        for first in range(0, len(rest), step):
            part = rest[first : first + step]
            part -= self._rows(first, first + len(part))
        return rest


class MonarchCodec(ResidualCodec[Monarch]):
    """The nearest product."""

    def encode(
        self,
        params: Monarch,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        metric: Metric | None = None,
    ) -> Sections:
        """Sections of the factors.

        Raises:
            CodecError: the stored type is too narrow for them.
        """
        left, right = factors(
            weight, blocks_of(params, (weight.shape[0], weight.shape[1])), generator
        )
        size = norm(whole)
        cost = size / max(norm(right), 1e-300), size / max(norm(left), 1e-300)
        if params.dtype == "int8":
            return {
                **_int8(left, "monarch_left", cost[0], rows=True),
                **_int8(right, "monarch_right", cost[1], rows=False),
            }
        dtype = TORCH_DTYPES[DTYPES[params.dtype]]
        return {
            "monarch_left": stored(left, dtype, "factors of monarch", HINT, size=cost[0]),
            "monarch_right": stored(right, dtype, "factors of monarch", HINT, size=cost[1]),
        }

    def decoder(
        self, params: Monarch, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> MonarchTerm | None:
        """M of the stored factors; None if `sections` hold none."""
        if "monarch_left" not in sections:
            return None
        left, right = sections["monarch_left"].to(dtype), sections["monarch_right"].to(dtype)
        if params.dtype == "int8":
            left = left * _spread(sections["monarch_left_scales"].to(dtype), left, rows=True)
            right = right * _spread(sections["monarch_right_scales"].to(dtype), right, rows=False)
        return MonarchTerm(left, right)


def factors(weight: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """L [p, k] and R [k, q] of the monarch matrix that is nearest to `weight` [p, q].

    Args:
        weight: finite.
        k: blocks of rows and of columns.
        generator: draws the sketch of large blocks, on the CPU.
    """
    p, q = weight.shape
    width = ceil_div(q, k)
    one = unit(weight)
    padded = torch.nn.functional.pad(weight / one, (0, width * k - q, 0, -p % k))
    blocks = padded.view(-1, k, k, width).permute(1, 2, 0, 3)  # [k, k, rows, columns] of a block
    left = weight.new_empty(k, k, padded.shape[0] // k)
    right = weight.new_empty(k, k, width)
    for row in range(k):
        if min(blocks.shape[2:]) > EXACT_BELOW:
            for column in range(k):
                u, v = truncated_svd(blocks[row, column].contiguous(), 1, generator)
                left[row, column], right[row, column] = u[:, 0], v[0]
            continue
        u, s, vt = torch.linalg.svd(blocks[row], full_matrices=False)
        first = u[:, :, 0]  # a pair is known up to a common sign: its largest entry is positive
        peak = first.gather(1, first.abs().argmax(1, keepdim=True))
        root = s[:, :1].sqrt() * torch.where(peak < 0, -1.0, 1.0)
        left[row], right[row] = first * root, vt[:, 0] * root
    size = one**0.5
    return (
        (left * size).permute(2, 0, 1).reshape(-1, k)[:p].contiguous(),
        (right * size).reshape(k, -1)[:, :q].contiguous(),
    )


def _spread(scales: Tensor, like: Tensor, *, rows: bool) -> Tensor:
    """Scales [k, k] of blocks for each number of L [p, k] (`rows`) or of R [k, q]."""
    k = len(scales)
    if rows:
        return scales[torch.arange(len(like), device=scales.device) % k]
    return scales.repeat_interleave(ceil_div(like.shape[1], k), dim=1)[:, : like.shape[1]]


def _int8(factor: Tensor, role: str, size: float, *, rows: bool) -> Sections:
    """Symmetric int8 codes of a factor, and a float16 scale for each block."""
    if rows:
        k = factor.shape[1]
        parts = torch.nn.functional.pad(factor, (0, 0, 0, -len(factor) % k)).view(-1, k, k)
        largest = parts.abs().amax(0)  # [k, k]
    else:
        k = len(factor)
        width = ceil_div(factor.shape[1], k)
        parts = torch.nn.functional.pad(factor, (0, width * k - factor.shape[1])).view(k, k, width)
        largest = parts.abs().amax(2)
    scales = stored(largest / INT8_LEVELS, torch.float16, f"{role} scales", HINT, size=size)
    step = _spread(scales.to(factor.dtype), factor, rows=rows)
    codes = torch.where(step > 0, factor / step, 0.0).round_().clamp_(-INT8_LEVELS, INT8_LEVELS)
    return {role: codes.to(torch.int8).contiguous(), f"{role}_scales": scales}
