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
    steps = 2**bits - 1
    factor, shift = {"integer": (1.0, 0.0), "unit": (steps, 0.0)}.get(range, (steps / 2, steps / 2))
    flat = values.reshape(-1)
    if len(flat) <= BLOCK:
        rounded = flat.mul(factor).add_(shift).round_().clamp_(0, steps)
        return rounded.to(torch.uint8).view(values.shape)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    parts = (torch.split(each, BLOCK) for each in (flat, codes))
    for part, out in zip(*parts, strict=True):
        out.copy_(part.mul(factor).add_(shift).round_().clamp_(0, steps))
    return codes.view(values.shape)


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
        nearest = partial(nearest_codes, bits=params.bits, range=latent.range)
        table = levels(params.bits, latent.range)
        return LevelCoder(latent.values, table, params.bits, nearest)

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
