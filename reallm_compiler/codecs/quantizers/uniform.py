"""Uniform quantiser: 2^bits evenly spaced levels over [-1, 1], or [0, 1] under `minmax`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.codecs.quantizers.scalar import Latent, RowReader, TableReader, normal_reach
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import UniformQuantizer

BLOCK = 1 << 18
"""Weights that are rounded in one step, so that intermediates stay in cache."""


def levels(bits: int, *, unit_range: bool) -> Tensor:
    """The 2^bits levels, ascending, float64: k / (2^bits - 1) on [0, 1], or the same on [-1, 1]."""
    steps = 2**bits - 1
    unit: Tensor = torch.arange(steps + 1, dtype=torch.float64) / steps
    return unit if unit_range else 2 * unit - 1


def reach(params: UniformQuantizer) -> float:
    """How many deviations of a normal latent the levels span under `rms` scales."""
    return normal_reach(tuple(levels(params.bits, unit_range=False).tolist()))


def encode(params: UniformQuantizer, latent: Latent) -> Sections:
    """Sections of the codes of the nearest levels; values outside the range take its ends."""
    steps = 2**params.bits - 1
    factor, shift = (steps, 0.0) if latent.unit_range else (steps / 2, steps / 2)
    flat = latent.values.reshape(-1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    for first in range(0, len(flat), BLOCK):
        part = flat[first : first + BLOCK]
        codes[first : first + len(part)] = (
            part.mul(factor).add_(shift).round_().clamp_(0, steps).to(torch.uint8)
        )
    return {"codes": pack(codes, params.bits)}


def reader(
    params: UniformQuantizer,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
    unit_range: bool,
) -> RowReader:
    """A reader of the codes of a latent [p, q]."""
    codes = sections["codes"]
    table = levels(params.bits, unit_range=unit_range).to(codes.device, dtype)
    return TableReader(table, codes, params.bits, shape)
