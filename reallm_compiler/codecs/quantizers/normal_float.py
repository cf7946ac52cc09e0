"""NormalFloat quantizer: NF-b, quantiles of the normal distribution on [-1, 1] (QLoRA).

With o = 0.9677083 and sigma = 1 / Phi^-1(o), the levels are sigma Phi^-1(x) for x over 2^(b-1)
even steps from 1 - o to 0.5 (its end left out) and 2^(b-1) + 1 from 0.5 to o: the ends are -1
and 1, one level is exactly 0, and there is one more above it than below.

The levels are float32 numbers, with the roundings of QLoRA's program, so that those of NF4 are the
constants in bitsandbytes and its kernels to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache, partial

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, QuantizerCodec, Shape
from reallm_compiler.codecs.quantizers.scalar import (
    LevelCoder,
    TableDecoder,
    level_codes,
    normal_reach,
)
from reallm_compiler.codecs.windows import LARGEST, WindowValues, split, two_planes
from reallm_compiler.stages import NormalFloatQuantizer, Range

OFFSET = 0.9677083
"""The outermost quantile, as QLoRA chose it."""

NARROW = 5
"""Bits of codes whose levels are found in one register (`kernels.llvm_text_words`)."""


@lru_cache(maxsize=8)
def _quantiles(bits: int) -> tuple[float, ...]:
    half = 2 ** (bits - 1)
    levels = torch.cat([-_upper(half), torch.zeros(1), _upper(half + 1).flip(0)])
    return tuple((levels / levels.max()).tolist())


def _upper(count: int) -> Tensor:
    """Quantiles at all but the last of `count` even steps from the offset down to 0.5, float32."""
    index = torch.arange(count - 1, dtype=torch.float32)
    first, last = torch.tensor(OFFSET, dtype=torch.float32), 0.5
    step = (last - first) / max(count - 1, 1)
    # From the nearer end, as `torch.linspace` does it in float32; by single operations here, as
    # its compiled forms may round differently.
    steps = torch.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    quantiles: Tensor = torch.special.ndtri(steps.to(torch.float64)).to(torch.float32)
    return quantiles


def levels(bits: int) -> Tensor:
    """The 2^bits levels of NF-b, ascending, float64; NF1 is 0 and 1."""
    return torch.tensor(_quantiles(bits), dtype=torch.float64)


class NormalFloatCodec(QuantizerCodec[NormalFloatQuantizer]):
    """Quantiles of the normal distribution."""

    def reach(self, params: NormalFloatQuantizer) -> float:
        """As far as pays for normal weights."""
        return normal_reach(tuple(levels(params.bits).tolist()))

    def levels(self, params: NormalFloatQuantizer, range: Range) -> Tensor:
        """The quantiles."""
        return levels(params.bits)

    def coder(
        self,
        params: NormalFloatQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> LevelCoder:
        """Each weight by itself; a tie goes to the lower level."""
        table = levels(params.bits).to(latent.values.device)
        nearest = partial(level_codes, levels=table)
        return LevelCoder(latent.values, table, params.bits, nearest)

    def decoder(
        self,
        params: NormalFloatQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> TableDecoder:
        """Levels by their codes."""
        codes = sections["codes"]
        table = levels(params.bits).to(codes.device, dtype)
        return TableDecoder(table, codes, params.bits, shape)

    def window_values(
        self,
        params: NormalFloatQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        range: Range,
    ) -> WindowValues:
        """The levels in two planes."""
        table, unit = level_planes(params.bits)
        return WindowValues(table=table, unit=unit)


@cache
def level_planes(bits: int) -> tuple[Tensor, float]:
    """int8 [2, 2^bits, 1] and its unit: the levels as integers, even ones of narrow codes, whose
    kernels halve them.

    Levels are no multiples of anything. Of the units that leave 14 to 15 bits, that one is taken by
    which few levels err least: half as much as by any.
    """
    table = levels(bits)
    if bits > NARROW:
        return two_planes(table[:, None])
    most = float(table.abs().max())
    largest = torch.arange(LARGEST // 4, LARGEST // 2 + 1, dtype=torch.float64)
    scaled = table * (largest[:, None] / most)  # [units, levels]
    errors = ((scaled.round() - scaled) / largest[:, None]).square().sum(1)
    best = int(errors.argmin())
    planes = split(2 * scaled[best].round())
    return torch.stack(planes)[..., None], most / (2 * float(largest[best]))
