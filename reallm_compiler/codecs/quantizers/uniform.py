"""Uniform quantizer: 2^bits evenly spaced levels over [-1, 1], or [0, 1] under `minmax`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, QuantizerCodec, Shape
from reallm_compiler.codecs.quantizers.scalar import LevelCoder, TableDecoder, normal_reach
from reallm_compiler.stages import UniformQuantizer

BLOCK = 1 << 18
"""Weights that are rounded in one step, so that intermediates stay in cache."""


def levels(bits: int, *, unit_range: bool) -> Tensor:
    """The 2^bits levels, ascending, float64: k / (2^bits - 1) on [0, 1], or the same on [-1, 1]."""
    steps = 2**bits - 1
    unit: Tensor = torch.arange(steps + 1, dtype=torch.float64) / steps
    return unit if unit_range else 2 * unit - 1


def nearest_codes(values: Tensor, bits: int, *, unit_range: bool) -> Tensor:
    """uint8, of the shape of `values`: nearest levels; values outside the range take its ends."""
    steps = 2**bits - 1
    factor, shift = (steps, 0.0) if unit_range else (steps / 2, steps / 2)
    flat = values.reshape(-1)
    if len(flat) <= BLOCK:
        rounded = flat.mul(factor).add_(shift).round_().clamp_(0, steps)
        return rounded.to(torch.uint8).view(values.shape)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    for first in range(0, len(flat), BLOCK):
        part = flat[first : first + BLOCK]
        codes[first : first + len(part)] = (
            part.mul(factor).add_(shift).round_().clamp_(0, steps).to(torch.uint8)
        )
    return codes.view(values.shape)


class UniformCodec(QuantizerCodec[UniformQuantizer]):
    """Evenly spaced levels."""

    def reach(self, params: UniformQuantizer) -> float:
        """As far as pays for normal weights."""
        return normal_reach(tuple(levels(params.bits, unit_range=False).tolist()))

    def coder(
        self,
        params: UniformQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> LevelCoder:
        """Each weight by itself."""
        nearest = partial(nearest_codes, bits=params.bits, unit_range=latent.unit_range)
        table = levels(params.bits, unit_range=latent.unit_range)
        return LevelCoder(latent.values, table, params.bits, nearest)

    def decoder(
        self,
        params: UniformQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        unit_range: bool,
    ) -> TableDecoder:
        """Levels by their codes."""
        codes = sections["codes"]
        table = levels(params.bits, unit_range=unit_range).to(codes.device, dtype)
        return TableDecoder(table, codes, params.bits, shape)
