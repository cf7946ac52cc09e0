"""Size law of the low-rank residual: L1 [p, r] and L2 [r, q] (paper, section 3 and Table 5).

Stored: r (p + q) factors. The paper counts 2 r min(p, q) of them, which is the same only for
square matrices. Factors of type int8 add one float16 scale for each of the r columns of L1 and
rows of L2.
"""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.layouts.base import DTYPES, SectionSpec
from reallm_compiler.recipe.stages import LowRank


def rank_of(params: LowRank, shape: tuple[int, int]) -> int:
    """Rank as an integer for a matrix of `shape`: at least 1, never above min(p, q)."""
    least = min(shape)
    if isinstance(params.rank, Fraction):
        return max(1, min(least, int(params.rank * least)))
    return min(least, params.rank)


def sections(params: LowRank, shape: tuple[int, int]) -> list[SectionSpec]:
    """Sections of the factors for a matrix [p, q]."""
    p, q = shape
    rank = rank_of(params, shape)
    dtype = DTYPES[params.dtype]
    specs = [
        SectionSpec(role="l1", dtype=dtype, shape=(p, rank), term="low_rank"),
        SectionSpec(role="l2", dtype=dtype, shape=(rank, q), term="low_rank"),
    ]
    if params.dtype == "int8":
        specs.append(SectionSpec(role="l1_scales", dtype="f16", shape=(rank,), term="low_rank"))
        specs.append(SectionSpec(role="l2_scales", dtype="f16", shape=(rank,), term="low_rank"))
    return specs
