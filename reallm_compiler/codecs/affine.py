"""The scales `affine`: w = s (c - z) of integer codes c, with z an integer too.

The groups are those of other scales (`codecs.scales`), and so is the array of s, the step between
two levels. The quantizer sees w / s + z, whose levels are the integers from 0 to 2^bits - 1:

    s = (max - min) / (2^bits - 1),   z = -min / s, rounded,   min <= 0 <= max

`symmetric` takes s = 2 max |w| / (2^bits - 1) and z = 2^(bits - 1). Both are the grids of GPTQ and
compressed-tensors. A group of zeros has s = z = 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ScalesCodec, Shape
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.scales import as_stored, decode_array, encode_array, extremes
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.stages import AffineScales
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.scales import ZEROS, group_count


class AffineCodec(ScalesCodec[AffineScales]):
    """A step and an integer zero point for each group."""

    def encode(
        self,
        params: AffineScales,
        latent: Tensor,
        *,
        reach: float = 1.0,
        stretch: float | Tensor = 1.0,
        clip: Tensor | None = None,
    ) -> Sections:
        """Sections of steps and zero points of a latent [p, q].

        Raises:
            CodecError: the stored type is too narrow for the steps.
        """
        least, largest = (end.mul(stretch) for end in extremes(params, latent, clip))
        least, largest = least.clamp_(max=0), largest.clamp_(min=0)
        if params.symmetric:
            largest = torch.maximum(largest, -least)
            least = -largest
        last = 2**params.code_bits - 1
        step = (largest - least) / last
        sections = encode_array(params, "scales", step, step)
        if params.symmetric:
            return sections
        # From the step as stored, so that the least weight stays near a level.
        step = decode_array(params, "scales", sections, len(step), step.dtype)
        return sections | _stored_zeros(params, step, least)

    def between(self, params: AffineScales, least: Tensor, largest: Tensor) -> Sections:
        """Steps, and zero points that stay where they are for small changes of the ends."""
        least, largest = least.clamp(max=0), largest.clamp(min=0)
        last = 2**params.code_bits - 1
        if params.symmetric:
            return {"scales": as_stored(params, 2 * torch.maximum(largest, -least) / last)}
        step = as_stored(params, (largest - least) / last)
        return {"scales": step, **_stored_zeros(params, step, least)}

    def decoder(
        self,
        params: AffineScales,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> ScaleField:
        """Steps s of a latent [p, q], and -s z."""
        step = decode_array(params, "scales", sections, group_count(params, shape), dtype)
        zero = -step * integer_zeros(params, sections, len(step)).to(step.device, dtype)
        return ScaleField(per=params.per, block=params.block, shape=shape, scale=step, zero=zero)

    def sections(self, params: AffineScales, field: ScaleField) -> Sections:
        """Steps of one level and zero points as they are stored."""
        assert field.zero is not None
        sections = {"scales": field.scale.to(TORCH_DTYPES[DTYPES[params.dtype]])}
        if params.symmetric:
            return sections
        return sections | _stored_zeros(params, field.scale, field.zero)


def _stored_zeros(params: AffineScales, step: Tensor, least: Tensor) -> Sections:
    """The section of the zero points, the codes nearest to -least / step; without a gradient."""
    zero = torch.where(step > 0, -least / step, 0.0).detach().round()
    zero = zero.clamp_(0, 2**params.code_bits - 1)
    return {ZEROS: pack(zero.to(torch.uint8), params.code_bits)}


def integer_zeros(params: AffineScales, sections: Mapping[str, Tensor], count: int) -> Tensor:
    """uint8 [count]: the zero point z of each group."""
    if params.symmetric:
        return torch.full((count,), 2 ** (params.code_bits - 1), dtype=torch.uint8)
    return unpack(sections[ZEROS], params.code_bits, count)
