"""Scales s and zero points z of groups of weights: the quantiser sees (x - z) / s.

Groups are the whole latent, its rows, its columns, or blocks of consecutive weights read row by
row. One level stores each scale as a float. Two levels (LQ-LoRA's double quantisation) store

    offset = least scale of the latent,  m = largest (s - offset) of a super-block
    code = round((s - offset) (2^bits - 1) / m),   s^ = offset + code m / (2^bits - 1)

The quantiser always works with what a reader will see: the decoded scales s^. A group of zeros
has scale 0 and decodes to exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.numbers import norm, stored, unit
from reallm_compiler.codecs.packing import pack, unpack
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.layouts.base import DTYPES
from reallm_compiler.layouts.scales import ScaleStage, group_count
from reallm_compiler.recipe.stages import MinmaxScales, NoScales, RmsScales
from reallm_compiler.units import ceil_div

LARGEST = 65504.0
"""Bound on normalised values, float16's largest: a two-level scale may round far below its s."""

HINT = "store the scales with `dtype: float32`"


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

    def normalise_(self, latent: Tensor) -> Tensor:
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


def encode(params: ScaleStage, latent: Tensor, *, reach: float = 1.0) -> Sections:
    """Sections of the scales, and of the zero points if any, of a latent [p, q].

    Args:
        params: the stage.
        latent: the latent.
        reach: what root mean squares are multiplied by, for levels that end at 1.

    Raises:
        CodecError: the stored type of the scales is too narrow for them.
    """
    if not isinstance(params, MinmaxScales):
        factor = reach if isinstance(params, RmsScales) else 1.0
        sizes = _magnitudes(params, latent).mul_(factor)
        return _encode_array(params, "scales", sizes, sizes)
    least, largest = _extremes(params, latent)
    sizes = torch.maximum(least.abs(), largest.abs())
    sections = _encode_array(params, "zeros", least, sizes)
    # From the zero point as stored, so that the largest weight stays inside.
    zero = _decode_array(params, "zeros", sections, len(least), least.dtype)
    return _encode_array(params, "scales", (largest - zero).clamp_(min=0), sizes) | sections


def decode(
    params: ScaleStage | NoScales,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> ScaleField | None:
    """The scales of a latent [p, q] in the precision `dtype`; None without scales."""
    if isinstance(params, NoScales):
        return None
    count = group_count(params, shape)
    zero = None
    if isinstance(params, MinmaxScales):
        zero = _decode_array(params, "zeros", sections, count, dtype)
    return ScaleField(
        per=params.per,
        block=params.block,
        shape=shape,
        scale=_decode_array(params, "scales", sections, count, dtype),
        zero=zero,
    )


def _magnitudes(params: ScaleStage, latent: Tensor) -> Tensor:
    """Largest magnitude or root mean square of each group, [groups]."""
    order = 2.0 if isinstance(params, RmsScales) else math.inf
    parts = []
    for group in _groups(params, latent):
        size = torch.linalg.vector_norm(group, ord=math.inf, dim=1)
        if order == 2.0:
            # Relative to the largest magnitude, so that no square overflows or vanishes.
            safe = torch.where(size > 0, size, 1.0)
            norm = torch.linalg.vector_norm(group / safe[:, None], dim=1)
            size = size * norm / math.sqrt(group.shape[1])
        parts.append(size)
    return torch.cat(parts)


def _extremes(params: ScaleStage, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of each group, each [groups]."""
    parts = [torch.aminmax(group, dim=1) for group in _groups(params, latent)]
    return torch.cat([part.min for part in parts]), torch.cat([part.max for part in parts])


def _groups(params: ScaleStage, latent: Tensor) -> list[Tensor]:
    """The groups in order as views [n, weights of a group]; a shorter last block stands alone."""
    if params.per == "row":
        return [latent]
    if params.per == "column":
        return [latent.t()]
    flat = latent.reshape(-1)
    if params.per == "tensor":
        return [flat[None, :]]
    whole = flat.numel() // params.block * params.block
    parts = [flat[:whole].view(-1, params.block), flat[None, whole:]]
    return [part for part in parts if part.numel()]


def _encode_array(params: ScaleStage, name: str, values: Tensor, sizes: Tensor) -> Sections:
    """Sections of scales or zero points [groups] called `name`.

    Args:
        params: the stage.
        name: `scales` or `zeros`.
        values: the numbers.
        sizes: the largest magnitudes or so of the groups: what an error in the numbers is held
            against.
    """
    dtype = TORCH_DTYPES[DTYPES[params.dtype]]
    if params.bits is None:
        return {name: stored(values, dtype, name, HINT, size=norm(sizes))}
    largest = float(sizes.max())
    offset = stored(values.min()[None], torch.float32, f"{name}_offset", HINT, size=largest)
    above = (values - offset).clamp_(min=0)
    per_super = torch.nn.functional.pad(
        torch.stack([above, sizes]), (0, -len(above) % params.superblock)
    ).view(2, -1, params.superblock)
    most = per_super.amax(2)  # [2, super-blocks]
    tops = stored(most[0], dtype, f"{name}_super", HINT, size=norm(most[1]))
    levels = 2**params.bits - 1
    one = unit(above)
    m = _per_scale(tops, params, values) / one
    codes = torch.where(m > 0, above / one * levels / m, 0.0).round_().clamp_(0, levels)
    return {
        name: pack(codes.to(torch.uint8), params.bits),
        f"{name}_super": tops,
        f"{name}_offset": offset,
    }


def _decode_array(
    params: ScaleStage,
    name: str,
    sections: Mapping[str, Tensor],
    count: int,
    dtype: torch.dtype,
) -> Tensor:
    """Scales or zero points [groups] as a reader sees them."""
    if params.bits is None:
        return sections[name].to(dtype)
    codes = unpack(sections[name], params.bits, count).to(dtype)
    step = _per_scale(sections[f"{name}_super"], params, codes) / (2**params.bits - 1)
    return codes.mul_(step).add_(sections[f"{name}_offset"].to(dtype))


def _per_scale(tops: Tensor, params: ScaleStage, like: Tensor) -> Tensor:
    """Super-scales [super-blocks] repeated to one for each scale [groups]."""
    return tops.to(like.dtype).repeat_interleave(params.superblock)[: len(like)]


def _panels(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Ranges of rows of about a million weights."""
    p, q = shape
    step = max(1, (1 << 20) // max(q, 1))
    return [(first, min(first + step, p)) for first in range(0, p, step)]
