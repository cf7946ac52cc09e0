"""Size law of the low-rank residual: L1 [p, r] and L2 [r, q] (paper, section 3 and Table 5).

Stored: r (p + q) factors. The paper counts 2 r min(p, q) of them, which is the same only for
square matrices. Factors of type int8 add one float16 scale for each of the r columns of L1 and
rows of L2.
"""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.stages import LowRank
from reallm_compiler.storage.base import DTYPES, Context, Cost, ResidualLaw, SectionSpec, Shape
from reallm_compiler.storage.values import Finite
from reallm_compiler.storage.work import DECOMPOSITIONS, DOUBLE_PRODUCTS, PRODUCTS, Work

OVERSAMPLING = 16
"""Columns of the sketch of a large matrix beyond the rank."""

POWER_ITERATIONS = 4
"""Times that the sketch is multiplied by W W^T."""

EXACT_BELOW = 512
"""min(p, q) up to which the SVD is exact."""


def rank_of(params: LowRank, shape: Shape) -> int:
    """Rank as an integer for a matrix of `shape`: at least 1, never above min(p, q)."""
    least = min(shape)
    if isinstance(params.rank, Fraction):
        return max(1, min(least, int(params.rank * least)))
    return min(least, params.rank)


def factor_sections(params: LowRank, shape: Shape) -> list[SectionSpec]:
    """Sections of the factors for a matrix [p, q]."""
    p, q = shape
    rank = rank_of(params, shape)
    dtype = DTYPES[params.dtype]
    entries: list[tuple[str, str, tuple[int, ...], Finite]] = [
        ("l1", dtype, (p, rank), Finite()),
        ("l2", dtype, (rank, q), Finite()),
    ]
    if params.dtype == "int8":
        entries += [
            (f"{role}_scales", "f16", (rank,), Finite(negative=False)) for role in ("l1", "l2")
        ]
    return [
        SectionSpec(role=role, dtype=stored, shape=extents, term="low_rank", values=values)
        for role, stored, extents, values in entries
    ]


class LowRankLaw(ResidualLaw[LowRank]):
    """Factors of rank r."""

    def sections(self, params: LowRank, shape: Shape, context: Context) -> list[SectionSpec]:
        """L1 and L2, and their scales."""
        return factor_sections(params, shape)

    def paper_bits(self, params: LowRank, shape: Shape, context: Context) -> dict[str, Fraction]:
        """32 r min(p, q), which is right for squares only."""
        return {"low_rank": Fraction(32 * rank_of(params, shape) * min(shape))}

    def cost(self, params: LowRank, shape: Shape, context: Context) -> Cost:
        """In the metric of the inputs: that and its factor in float64, and the matrix moved."""
        if not params.needs_statistics:
            return Cost()
        p, q = shape
        return Cost(host_bytes=8 * (3 * q * q + 2 * p * q))

    def work(self, params: LowRank, shape: Shape, context: Context) -> Work:
        """The factors: of a small matrix exact, of a large one from a sketch; and the metric."""
        p, q = shape
        rank = rank_of(params, shape)
        if params.fit == "zero":
            return {PRODUCTS: p * q * rank}
        metric = q**3 + p * q * q + rank * q * q if params.metric == "inputs" else 0
        if 3 * (rank + OVERSAMPLING) >= min(shape) or min(shape) <= EXACT_BELOW:
            fitted = {DECOMPOSITIONS: p * q * min(shape)}
        else:
            width = rank + OVERSAMPLING
            products = (2 * POWER_ITERATIONS + 3) * p * q * width
            small = (2 * POWER_ITERATIONS + 1) * (p + q) // 2 * width**2  # orthogonal bases
            fitted = {PRODUCTS: products, DECOMPOSITIONS: small + q * width**2}
        return fitted | {DOUBLE_PRODUCTS: metric}

    def rank(self, params: LowRank, shape: Shape) -> int:
        """r."""
        return rank_of(params, shape)

    def factor_dtype(self, params: LowRank) -> str:
        """The stored type of the factors."""
        return params.dtype
