"""Size law of a whole matrix: the sections of its stages, in storage order, and its paper bits."""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.layouts import dora, low_rank, nearest, scalar, scales, vq
from reallm_compiler.layouts.base import SectionSpec
from reallm_compiler.recipe.stages import (
    LowRank,
    MatrixPlan,
    NearestPermutation,
    NoQuantizer,
    NoScales,
    VectorQuantizer,
)

TERMS = ("codes", "codebook", "scales", "permutation", "low_rank", "dora")
"""The budget terms of a matrix, in the order of tables."""


def sections(plan: MatrixPlan, shape: tuple[int, int], source_dtype: str) -> list[SectionSpec]:
    """Sections that a matrix [p, q] of type `source_dtype` stores under `plan`, in order."""
    specs: list[SectionSpec] = []
    if isinstance(plan.residual, LowRank):
        specs += low_rank.sections(plan.residual, shape)
    if isinstance(plan.permutation, NearestPermutation):
        specs += nearest.sections(plan.permutation, shape)
    if not isinstance(plan.scales, NoScales):
        specs += scales.sections(plan.scales, shape)
    if isinstance(plan.quantizer, VectorQuantizer):
        specs += vq.sections(plan.quantizer, shape, shared=plan.share is not None)
    elif isinstance(plan.quantizer, NoQuantizer):
        specs += scalar.value_sections(plan.quantizer, shape, source_dtype)
    else:
        specs += scalar.code_sections(plan.quantizer, shape)
    if plan.dora:
        specs += dora.sections(shape)
    return specs


def low_rank_parameters(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Factors that the residual stores, r (p + q); 0 without one."""
    if not isinstance(plan.residual, LowRank):
        return 0
    return low_rank.rank_of(plan.residual, shape) * sum(shape)


def paper_bits(plan: MatrixPlan, shape: tuple[int, int], source_dtype: str) -> Fraction:
    """Bits per weight as the paper's Table 5 counts them.

    [ b x latent values + 16 d 2^(bd) if the codebook is learned + 32 r min(p, q) ] / pq: no
    scales, no permutation, no magnitudes, and a low-rank part that is right for squares only.
    """
    p, q = shape
    quantizer = plan.quantizer
    bits = Fraction(0)
    if isinstance(quantizer, NoQuantizer):
        values = scalar.value_sections(quantizer, shape, source_dtype)
        bits += 8 * sum(spec.bytes for spec in values)
    else:
        bits += Fraction(quantizer.bits) * p * q
    if isinstance(quantizer, VectorQuantizer):
        bits += 16 * quantizer.dim * 2**quantizer.index_bits
    if isinstance(plan.residual, LowRank):
        bits += 32 * low_rank.rank_of(plan.residual, shape) * min(p, q)
    return bits / (p * q)
