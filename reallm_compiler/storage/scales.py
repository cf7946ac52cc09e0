"""Size law of scales, one or two levels (LQ-LoRA's double quantization).

One level stores n values. Two levels store n codes of `bits` bits, one super-scale for each
`superblock` of them and one float32 offset, or an offset for each super-scale. `minmax` stores a
second array, the zero points, by the same size law. For 64 weights a block, 8 bits and 256 blocks a
super-block: 8/64 + 32/(64 x 256) = 0.126953 bits per weight, and 32 bits once.
"""

from __future__ import annotations

from reallm_compiler.stages import GroupScales
from reallm_compiler.storage.base import DTYPES, Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.values import Finite
from reallm_compiler.storage.windows import NumberArray, ScaleArrays
from reallm_compiler.storage.work import PRODUCTS, TRIALS, Work
from reallm_compiler.units import ceil_div

TRIED = 10
"""Shares of its largest weight that are tried for each group."""

ZEROS = "zeros"
"""Name of the array of zero points; that of the scales is `scales`."""


def group_count(params: GroupScales, shape: Shape) -> int:
    """Number of groups of weights that have a scale of their own."""
    p, q = shape
    counts = {"tensor": 1, "row": p, "column": q, "block": ceil_div(p * q, params.block)}
    return counts[params.per]


def array_sections(
    params: GroupScales, name: str, count: int, *, negative: bool
) -> list[SectionSpec]:
    """Sections of one array of `count` scales, or of zero points, which may be below zero."""
    dtype = DTYPES[params.dtype]
    numbers = Finite(negative=negative)
    bits, superblock = params.second_level(name)
    if bits is None:
        return [SectionSpec(role=name, dtype=dtype, shape=(count,), term="scales", values=numbers)]
    supers = ceil_div(count, superblock)
    single = params.offset == "matrix"
    return [
        SectionSpec(role=name, dtype=f"b{bits}", shape=(count,), term="scales"),
        SectionSpec(
            role=f"{name}_super",
            dtype=dtype,
            shape=(supers,),
            term="scales",
            values=Finite(negative=False),
        ),
        SectionSpec(
            role=f"{name}_offset",
            dtype="f32" if single else dtype,
            shape=(1,) if single else (supers,),
            term="scales",
            values=numbers,
        ),
    ]


def number_array(params: GroupScales, name: str) -> NumberArray:
    """How such an array is read."""
    bits, superblock = params.second_level(name)
    return NumberArray() if bits is None else NumberArray(bits=bits, superblock=superblock)


def search_cost(params: GroupScales, shape: Shape) -> Cost:
    """Where shares are searched: the latent scaled, decoded, its errors; and the metric."""
    if not params.searched:
        return Cost()
    p, q = shape
    size = 4 * 4 * p * q + (12 * q * q if params.needs_statistics else 0)
    return Cost(host_bytes=size)


def search_work(params: GroupScales, shape: Shape) -> Work:
    """Where shares are searched: the latent coded for each, and the errors in the metric."""
    if not params.searched:
        return {}
    p, q = shape
    group = {"block": params.block, "row": q, "tensor": q}.get(params.per, 1)
    metric = TRIED * p * q * group if params.needs_statistics else 0
    return {TRIALS: TRIED * p * q, PRODUCTS: metric}


class ScalesLaw(SizeLaw[GroupScales]):
    """Arrays of numbers, one for each group of weights.

    Args:
        arrays: their names.
    """

    def __init__(self, *arrays: str) -> None:
        self.arrays = arrays

    def sections(self, params: GroupScales, shape: Shape, context: Context) -> list[SectionSpec]:
        """All arrays, one after the other."""
        count = group_count(params, shape)
        return [
            spec
            for name in self.arrays
            for spec in array_sections(params, name, count, negative=name == ZEROS)
        ]

    def cost(self, params: GroupScales, shape: Shape, context: Context) -> Cost:
        """What a search takes."""
        return search_cost(params, shape)

    def work(self, params: GroupScales, shape: Shape, context: Context) -> Work:
        """What a search takes."""
        return search_work(params, shape)

    def scale_arrays(self, params: GroupScales) -> ScaleArrays:
        """The arrays."""
        return ScaleArrays(
            per=params.per,
            block=params.block,
            dtype=DTYPES[params.dtype],
            scales=number_array(params, "scales"),
            zeros=number_array(params, ZEROS) if ZEROS in self.arrays else None,
            offset=params.offset,
        )
