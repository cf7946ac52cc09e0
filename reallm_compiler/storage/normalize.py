"""Size law of the transform `normalize`: the scales of the matrix's own blocks, one or two levels.

They are scales like those of the latent (`storage.scales`), of the matrix [p, q] itself: for 64
weights a block, 8 bits and 256 blocks a super-block 0.126953 bits per weight.
"""

from __future__ import annotations

from reallm_compiler.stages import AbsmaxScales, Normalize, RmsScales
from reallm_compiler.storage import scales
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw

ROLE = "norm"
"""Name of the array of scales; `scales` are those of the latent."""


def as_scales(params: Normalize) -> AbsmaxScales | RmsScales:
    """The scales stage that makes the same numbers."""
    fields = params.model_dump(exclude={"kind", "by"})
    if params.by == "rms":
        return RmsScales(kind="rms", **fields)
    return AbsmaxScales(kind="absmax", **fields)


class NormalizeLaw(SizeLaw[Normalize]):
    """One array of scales."""

    def sections(self, params: Normalize, shape: Shape, context: Context) -> list[SectionSpec]:
        """The scales of a matrix [p, q]."""
        stage = as_scales(params)
        return scales.array_sections(stage, ROLE, scales.group_count(stage, shape), negative=False)
