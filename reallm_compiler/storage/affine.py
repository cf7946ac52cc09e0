"""Size law of the scales `affine`: for each group a step, and a zero point as wide as a code."""

from __future__ import annotations

from reallm_compiler.stages import AffineScales
from reallm_compiler.storage.base import DTYPES, Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.scales import (
    ZEROS,
    array_sections,
    group_count,
    number_array,
    search_cost,
    search_work,
)
from reallm_compiler.storage.windows import NumberArray, ScaleArrays
from reallm_compiler.storage.work import Work


class AffineLaw(SizeLaw[AffineScales]):
    """One array of scales, and codes of zero points unless the grid is symmetric."""

    def sections(self, params: AffineScales, shape: Shape, context: Context) -> list[SectionSpec]:
        """Scales, then zero points."""
        count = group_count(params, shape)
        found = array_sections(params, "scales", count, negative=False)
        if not params.symmetric:
            dtype = f"b{params.code_bits}"
            found.append(SectionSpec(role=ZEROS, dtype=dtype, shape=(count,), term="scales"))
        return found

    def scale_arrays(self, params: AffineScales) -> ScaleArrays:
        """Scales, and integers as zero points: stored ones, or the same one for all."""
        stored = None if params.symmetric else NumberArray(bits=params.code_bits)
        return ScaleArrays(
            per=params.per,
            block=params.block,
            dtype=DTYPES[params.dtype],
            scales=number_array(params, "scales"),
            zeros=stored,
            zero=2 ** (params.code_bits - 1) if params.symmetric else 0,
            offset=params.offset,
        )

    def cost(self, params: AffineScales, shape: Shape, context: Context) -> Cost:
        """What a search takes."""
        return search_cost(params, shape)

    def work(self, params: AffineScales, shape: Shape, context: Context) -> Work:
        """What a search takes."""
        return search_work(params, shape)
