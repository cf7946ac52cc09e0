"""Size law of scales, one or two levels (LQ-LoRA's double quantisation).

One level stores n values. Two levels store n codes of `bits` bits, one super-scale for each
`superblock` of them and one float32 offset. `minmax` stores a second array, the zero points, by
the same law. For 64 weights a block, 8 bits and 256 blocks a super-block: 8/64 + 32/(64 x 256)
= 0.126953 bits per weight, and 32 bits once.
"""

from __future__ import annotations

from reallm_compiler.stages import AbsmaxScales, MinmaxScales, RmsScales
from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_compiler.storage.values import Finite
from reallm_compiler.units import ceil_div

ScaleStage = RmsScales | AbsmaxScales | MinmaxScales


def group_count(params: ScaleStage, shape: tuple[int, int]) -> int:
    """Number of groups of weights that have a scale of their own."""
    p, q = shape
    counts = {"tensor": 1, "row": p, "column": q, "block": ceil_div(p * q, params.block)}
    return counts[params.per]


def array_sections(
    params: ScaleStage, name: str, count: int, *, negative: bool
) -> list[SectionSpec]:
    """Sections of one array of `count` scales, or of zero points, which may be below zero."""
    dtype = DTYPES[params.dtype]
    numbers = Finite(negative=negative)
    if params.bits is None:
        return [SectionSpec(role=name, dtype=dtype, shape=(count,), term="scales", values=numbers)]
    supers = ceil_div(count, params.superblock)
    return [
        SectionSpec(role=name, dtype=f"b{params.bits}", shape=(count,), term="scales"),
        SectionSpec(
            role=f"{name}_super",
            dtype=dtype,
            shape=(supers,),
            term="scales",
            values=Finite(negative=False),
        ),
        SectionSpec(role=f"{name}_offset", dtype="f32", shape=(1,), term="scales", values=numbers),
    ]


def sections(params: ScaleStage, shape: tuple[int, int]) -> list[SectionSpec]:
    """Sections of the scales, and of the zero points if any, for a latent [p, q]."""
    count = group_count(params, shape)
    specs = array_sections(params, "scales", count, negative=False)
    if isinstance(params, MinmaxScales):
        specs += array_sections(params, "zeros", count, negative=True)
    return specs
