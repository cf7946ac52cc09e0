"""Uniform quantizer: 2^bits evenly spaced levels over the range of the scales."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, QuantizerCodec, Shape
from reallm_compiler.codecs.quantizers.scalar import LevelCoder, TableDecoder, normal_reach
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.stages import Range, UniformQuantizer

BLOCK = 1 << 18
"""Weights that are rounded in one step, so that intermediates stay in cache."""


def levels(bits: int, range: Range) -> Tensor:
    """The 2^bits levels, ascending, float64: k itself where the range is `integer`, else
    k / (2^bits - 1) on [0, 1], or the same on [-1, 1].
    """
    steps = 2**bits - 1
    codes: Tensor = torch.arange(steps + 1, dtype=torch.float64)
    if range != "integer":
        codes = codes / steps
    return codes if range in ("integer", "unit") else 2 * codes - 1


def nearest_codes(values: Tensor, bits: int, range: Range) -> Tensor:
    """uint8, of the shape of `values`: nearest levels; values outside the range take its ends."""
    if values.numel() <= BLOCK:
        return _rounded(values, bits, range).to(torch.uint8)
    flat = values.reshape(-1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    parts = (torch.split(each, BLOCK) for each in (flat, codes))
    for part, out in zip(*parts, strict=True):
        out.copy_(_rounded(part, bits, range))
    return codes.view(values.shape)


def _rounded(values: Tensor, bits: int, range: Range) -> Tensor:
    """The codes as numbers of the type of `values`, a fresh tensor."""
    steps = 2**bits - 1
    if range in ("integer", "unit"):
        scaled = values.mul(1 if range == "integer" else steps)
    else:
        scaled = values.mul(steps / 2).add_(steps / 2)
    return scaled.round_().clamp_(0, steps)


class UniformCoder(LevelCoder):
    """Codes of single weights by even levels.

    Args:
        values: the latent [p, q], whose shape and device are meant.
        bits: width of a code.
        range: where the levels lie.
    """

    def __init__(self, values: Tensor, bits: int, range: Range) -> None:
        nearest = partial(nearest_codes, bits=bits, range=range)
        super().__init__(values, levels(bits, range), bits, nearest)
        self._range = range

    def nearest(self, block: Tensor, columns: slice, *, rows: slice = slice(None)) -> Tensor:
        """The nearest levels but for rounding, by arithmetic instead of look-ups."""
        steps = 2**self._bits - 1
        rounded = _rounded(block, self._bits, self._range)
        if self._range == "integer":
            return rounded
        return rounded.div_(steps) if self._range == "unit" else rounded.mul_(2 / steps).sub_(1)


class UniformCodec(QuantizerCodec[UniformQuantizer]):
    """Evenly spaced levels."""

    def reach(self, params: UniformQuantizer) -> float:
        """As far as pays for normal weights."""
        return normal_reach(tuple(levels(params.bits, "signed").tolist()))

    def levels(self, params: UniformQuantizer, range: Range) -> Tensor:
        """Evenly spaced over the range."""
        return levels(params.bits, range)

    def coder(
        self,
        params: UniformQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> LevelCoder:
        """Each weight by itself."""
        return UniformCoder(latent.values, params.bits, latent.range)

    def decoder(
        self,
        params: UniformQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> TableDecoder:
        """Levels by their codes."""
        codes = sections["codes"]
        table = levels(params.bits, range).to(codes.device, dtype)
        return TableDecoder(table, codes, params.bits, shape)

    def window_values(
        self,
        params: UniformQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        range: Range,
    ) -> WindowValues:
        """Entries are codes less 2^(bits - 1)."""
        least, unit = levels(params.bits, range)[:2].tolist()
        unit -= least
        return WindowValues(table=None, unit=unit, shift=least + unit * 2 ** (params.bits - 1))
