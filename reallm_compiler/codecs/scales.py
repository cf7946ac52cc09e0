"""Scales s and zero points z of groups of weights: the quantizer sees (x - z) / s.

Groups are the whole latent, its rows, its columns, or blocks of consecutive weights read row by
row. One level stores each scale as a float. Two levels (LQ-LoRA's double quantization) store

    offset = least scale of the latent or of a super-block,
    m = largest (s - offset) of a super-block
    code = round((s - offset) (2^bits - 1) / m),   s^ = offset + code m / (2^bits - 1)

The quantizer always works with what a reader will see: the decoded scales s^. A group of zeros
has scale 0 and decodes to exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ScalesCodec, Shape
from reallm_compiler.codecs.numerics.numbers import norm, stored, unit
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.stages import GroupScales, MinmaxScales
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.scales import group_count

HINT = "store the scales with `dtype: float32`"


class MagnitudeCodec(ScalesCodec[GroupScales]):
    """One scale for each group.

    Args:
        order: of the norm: infinity for the largest magnitude, 2 for the root mean square.
    """

    def __init__(self, order: float) -> None:
        self._order = order

    def encode(
        self,
        params: GroupScales,
        latent: Tensor,
        *,
        reach: float = 1.0,
        stretch: float | Tensor = 1.0,
        clip: Tensor | None = None,
    ) -> Sections:
        """Sections of the scales of a latent [p, q]; root mean squares are multiplied by `reach`.

        Raises:
            CodecError: the stored type of the scales is too narrow for them.
        """
        factor = reach * stretch if self._order == 2.0 else stretch
        sizes = magnitudes(params, latent, self._order).mul_(factor)
        if clip is not None:
            sizes.mul_(clip)
        return encode_array(params, "scales", sizes, sizes)

    def decoder(
        self,
        params: GroupScales,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> ScaleField:
        """The scales of a latent [p, q]."""
        return scale_field(params, shape, sections, dtype, zero=None)

    def between(self, params: GroupScales, least: Tensor, largest: Tensor) -> Sections:
        """Scales that reach to the farther end; not for root mean squares."""
        return {"scales": as_stored(params, torch.maximum(-least, largest))}

    def sections(self, params: GroupScales, field: ScaleField) -> Sections:
        """Scales of one level as they are stored."""
        return {"scales": field.scale.to(TORCH_DTYPES[DTYPES[params.dtype]])}


class MinmaxCodec(ScalesCodec[MinmaxScales]):
    """A scale and a zero point for each group."""

    def encode(
        self,
        params: MinmaxScales,
        latent: Tensor,
        *,
        reach: float = 1.0,
        stretch: float | Tensor = 1.0,
        clip: Tensor | None = None,
    ) -> Sections:
        """Sections of scales and zero points of a latent [p, q].

        Raises:
            CodecError: the stored type is too narrow for them.
        """
        least, largest = extremes(params, latent, clip)
        sizes = torch.maximum(least.abs(), largest.abs())
        if isinstance(stretch, Tensor) or stretch != 1:  # about the middle of the range
            taken = (largest - least) * ((1 - stretch) / 2)
            least, largest = least + taken, largest - taken
        sections = encode_array(params, "zeros", least, sizes)
        # From the zero point as stored, so that the largest weight stays inside.
        zero = decode_array(params, "zeros", sections, len(least), least.dtype)
        return encode_array(params, "scales", (largest - zero).clamp_(min=0), sizes) | sections

    def decoder(
        self,
        params: MinmaxScales,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> ScaleField:
        """Scales and zero points of a latent [p, q]."""
        zero = decode_array(params, "zeros", sections, group_count(params, shape), dtype)
        return scale_field(params, shape, sections, dtype, zero=zero)

    def between(self, params: MinmaxScales, least: Tensor, largest: Tensor) -> Sections:
        """Zero points at the lower end."""
        zero = as_stored(params, least)
        return {"scales": as_stored(params, (largest - zero).clamp(min=0)), "zeros": zero}

    def sections(self, params: MinmaxScales, field: ScaleField) -> Sections:
        """Scales and zero points of one level as they are stored."""
        assert field.zero is not None
        dtype = TORCH_DTYPES[DTYPES[params.dtype]]
        return {"scales": field.scale.to(dtype), "zeros": field.zero.to(dtype)}


def as_stored(params: GroupScales, values: Tensor) -> Tensor:
    """float32 of what the stored type leaves; gradients pass as they are."""
    rounded = values.to(TORCH_DTYPES[DTYPES[params.dtype]]).to(values.dtype)
    return values + (rounded - values).detach()


def scale_field(
    params: GroupScales,
    shape: Shape,
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    zero: Tensor | None,
) -> ScaleField:
    """The scales as they lie on a latent [p, q], with zero points [groups]."""
    scale = decode_array(params, "scales", sections, group_count(params, shape), dtype)
    return ScaleField(per=params.per, block=params.block, shape=shape, scale=scale, zero=zero)


def magnitudes(params: GroupScales, latent: Tensor, order: float) -> Tensor:
    """Largest magnitude or root mean square of each group, [groups]."""
    parts = []
    for group in groups(params, latent):
        size = torch.linalg.vector_norm(group, ord=math.inf, dim=1)
        if order == 2.0:
            # Relative to the largest magnitude, so that no square overflows or vanishes.
            safe = torch.where(size > 0, size, 1.0)
            norm = torch.linalg.vector_norm(group / safe[:, None], dim=1)
            size = size * norm / math.sqrt(group.shape[1])
        parts.append(size)
    return torch.cat(parts)


def extremes(
    params: GroupScales, latent: Tensor, clip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Least and largest value of each group, each [groups].

    Args:
        params: the stage.
        latent: [p, q].
        clip: the share of its largest magnitude to which the values of each group reach, [groups];
            None for all of it.
    """
    parts = [torch.aminmax(group, dim=1) for group in groups(params, latent)]
    least, largest = (torch.cat(ends) for ends in zip(*parts, strict=True))
    if clip is not None:
        bound = torch.maximum(least.abs(), largest.abs()).mul_(clip)
        least, largest = torch.maximum(least, -bound), torch.minimum(largest, bound)
    return least, largest


def groups(params: GroupScales, latent: Tensor) -> list[Tensor]:
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


def encode_array(params: GroupScales, name: str, values: Tensor, sizes: Tensor) -> Sections:
    """Sections of scales or zero points [groups] called `name`.

    Args:
        params: the stage.
        name: `scales` or `zeros`.
        values: the numbers.
        sizes: the largest magnitudes or so of the groups: what an error in the numbers is held
            against.
    """
    dtype = TORCH_DTYPES[DTYPES[params.dtype]]
    bits, superblock = params.second_level(name)
    if bits is None:
        return {name: stored(values, dtype, name, HINT, size=norm(sizes))}
    most = _by_super(sizes, superblock, 0.0).amax(1)  # [super-blocks]
    if params.offset == "matrix":
        least, kept, size = values.min()[None], torch.float32, float(sizes.max())
    else:
        least, kept, size = _by_super(values, superblock, torch.inf).amin(1), dtype, norm(most)
    offset = stored(least, kept, f"{name}_offset", HINT, size=size)
    above = (values - _per_scale(offset, superblock, values)).clamp_(min=0)
    largest = _by_super(above, superblock, 0.0).amax(1)
    tops = stored(largest, dtype, f"{name}_super", HINT, size=norm(most))
    levels = 2**bits - 1
    one = unit(above)
    m = _per_scale(tops, superblock, values) / one
    codes = torch.where(m > 0, above / one * levels / m, 0.0).round_().clamp_(0, levels)
    return {
        name: pack(codes.to(torch.uint8), bits),
        f"{name}_super": tops,
        f"{name}_offset": offset,
    }


def decode_array(
    params: GroupScales,
    name: str,
    sections: Mapping[str, Tensor],
    count: int,
    dtype: torch.dtype,
) -> Tensor:
    """Scales or zero points [groups] as a reader sees them."""
    bits, superblock = params.second_level(name)
    if bits is None:
        return sections[name].to(dtype)
    codes = unpack(sections[name], bits, count).to(dtype)
    step = _per_scale(sections[f"{name}_super"], superblock, codes) / (2**bits - 1)
    return codes.mul_(step).add_(_per_scale(sections[f"{name}_offset"], superblock, codes))


def _by_super(values: Tensor, superblock: int, rest: float) -> Tensor:
    """Numbers [groups] by super-blocks, the last one filled up with `rest`."""
    filled = torch.nn.functional.pad(values, (0, -len(values) % superblock), value=rest)
    return filled.view(-1, superblock)


def _per_scale(tops: Tensor, superblock: int, like: Tensor) -> Tensor:
    """Numbers [super-blocks], or one [1] for all, repeated to one for each scale [groups]."""
    wide = tops.to(like.dtype)
    return wide if len(wide) == 1 else wide.repeat_interleave(superblock)[: len(like)]
