"""Size law of a whole matrix: the sections of its stages, in storage order, and its paper bits."""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.layouts import (
    dora,
    hadamard,
    hnerv,
    low_rank,
    nearest,
    normalize,
    scalar,
    scales,
    trellis,
    vq,
)
from reallm_compiler.layouts.base import SectionSpec
from reallm_compiler.recipe.stages import (
    Hadamard,
    Hnerv,
    LowRank,
    MatrixPlan,
    NearestPermutation,
    NoQuantizer,
    NormalFloatQuantizer,
    NoScales,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)

TERMS = ("codes", "codebook", "decoder", "scales", "permutation", "low_rank", "dora")
"""The budget terms of a matrix, in the order of tables."""


def latent_shape(plan: MatrixPlan, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the latent of a matrix [p, q], on which the later stages act."""
    if isinstance(plan.autoencoder, Hnerv):
        return hnerv.latent_shape(plan.autoencoder, shape)
    return shape


def sections(plan: MatrixPlan, shape: tuple[int, int], source_dtype: str) -> list[SectionSpec]:
    """Sections that a matrix [p, q] of type `source_dtype` stores under `plan`, in order."""
    specs: list[SectionSpec] = []
    if isinstance(plan.residual, LowRank):
        specs += low_rank.sections(plan.residual, shape)
    for transform in plan.transform:
        if isinstance(transform, Hadamard):
            specs += hadamard.sections(transform, shape)
        else:
            specs += normalize.sections(transform, shape)
    if isinstance(plan.autoencoder, Hnerv):
        specs += hnerv.sections(plan.autoencoder, shape, shared=plan.share is not None)
    specs += latent_sections(plan, latent_shape(plan, shape), source_dtype)
    if plan.dora:
        specs += dora.sections(shape)
    return specs


def rows_stand_alone(plan: MatrixPlan) -> bool:
    """Whether each row is coded by itself, so that bands of rows make up the whole.

    Scales in float16 do not: whether they lose too much can be said of a whole matrix only.
    """
    alone = isinstance(plan.quantizer, UniformQuantizer | NormalFloatQuantizer)
    scales = plan.scales
    scaled = (
        not isinstance(scales, NoScales)
        and (scales.per, scales.bits) == ("row", None)
        and scales.dtype != "float16"
    )
    rest = MatrixPlan(scales=plan.scales, quantizer=plan.quantizer)
    return alone and scaled and plan == rest


def reused_sections(plan: MatrixPlan, shape: tuple[int, int]) -> list[SectionSpec]:
    """Sections that decoding needs from an archive of kind `decoder`; mostly none."""
    params = plan.autoencoder
    if not isinstance(params, Hnerv) or params.decoder is None:
        return []
    width = hnerv.decoder_width(params, shape, shared=True)
    return hnerv.decoder_sections(params, width, shared=True)


def latent_sections(
    plan: MatrixPlan, shape: tuple[int, int], source_dtype: str
) -> list[SectionSpec]:
    """Sections of permutation, scales and quantizer for a latent of `shape`."""
    specs: list[SectionSpec] = []
    if isinstance(plan.permutation, NearestPermutation):
        specs += nearest.sections(plan.permutation, shape)
    if not isinstance(plan.scales, NoScales):
        specs += scales.sections(plan.scales, shape)
    if isinstance(plan.quantizer, VectorQuantizer):
        specs += vq.sections(plan.quantizer, shape, shared=plan.share is not None)
    elif isinstance(plan.quantizer, TrellisQuantizer):
        specs += trellis.sections(plan.quantizer, shape, shared=plan.share is not None)
    elif isinstance(plan.quantizer, NoQuantizer):
        specs += scalar.value_sections(plan.quantizer, shape, source_dtype)
    else:
        specs += scalar.code_sections(plan.quantizer, shape)
    return specs


def refusal(plan: MatrixPlan, shape: tuple[int, int]) -> str | None:
    """Why a matrix [p, q] cannot be stored under `plan`; None if it can."""
    if isinstance(plan.autoencoder, Hnerv):
        return hnerv.refusal(plan.autoencoder, shape, shared=plan.share is not None)
    return None


def low_rank_parameters(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Factors that the residual stores, r (p + q); 0 without one."""
    if not isinstance(plan.residual, LowRank):
        return 0
    return low_rank.rank_of(plan.residual, shape) * sum(shape)


def decode_macs(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Multiply-accumulates of the decoder for a matrix [p, q]; 0 without one."""
    if not isinstance(plan.autoencoder, Hnerv):
        return 0
    return hnerv.decode_macs(plan.autoencoder, shape, shared=plan.share is not None)


def decode_bytes(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Memory of a trained decoder at work on a matrix [p, q]; 0 without one."""
    if not isinstance(plan.autoencoder, Hnerv):
        return 0
    return hnerv.decode_bytes(plan.autoencoder, shape, shared=plan.share is not None)


def training_operations(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Floating-point operations that train the autoencoder of a matrix [p, q]; 0 without one."""
    if not isinstance(plan.autoencoder, Hnerv):
        return 0
    return hnerv.training_operations(plan.autoencoder, shape, shared=plan.share is not None)


def group_operations(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """The part of `training_operations` that a matrix causes in the training of its group."""
    if not isinstance(plan.autoencoder, Hnerv) or plan.share is None:
        return 0
    return hnerv.joint_operations(plan.autoencoder, shape, shared=True)


def working_bytes(plan: MatrixPlan, shape: tuple[int, int]) -> int:
    """Memory that a trained autoencoder takes while a matrix [p, q] is coded; 0 without one."""
    if not isinstance(plan.autoencoder, Hnerv):
        return 0
    return hnerv.working_bytes(plan.autoencoder, shape, shared=plan.share is not None)


def paper_terms(
    plan: MatrixPlan, shape: tuple[int, int], source_dtype: str, *, sharers: int = 1
) -> dict[str, Fraction]:
    """Bits per weight as the paper's Table 5 counts them, by budget term.

    [ b x latent values + 16 d 2^(bd) if the codebook is learned + c x b_phi / m + 32 r min(p, q) ]
    / pq: no scales, no permutation, no magnitudes, the nominal c of a decoder, and a low-rank part
    that is right for squares only.

    Args:
        plan, shape, source_dtype: the matrix.
        sharers: m, the matrices that share its decoder.
    """
    p, q = shape
    quantizer = plan.quantizer
    latent = latent_shape(plan, shape)
    terms: dict[str, Fraction] = {}
    if isinstance(quantizer, NoQuantizer):
        values = scalar.value_sections(quantizer, latent, source_dtype)
        terms["codes"] = Fraction(8 * sum(spec.bytes for spec in values))
    else:
        terms["codes"] = Fraction(quantizer.bits) * latent[0] * latent[1]
    if isinstance(quantizer, VectorQuantizer):
        terms["codebook"] = Fraction(16 * quantizer.dim * 2**quantizer.index_bits)
    if isinstance(quantizer, TrellisQuantizer):
        terms["codebook"] = Fraction(16 * len(quantizer.widths) * 2**quantizer.memory)
    if isinstance(plan.autoencoder, Hnerv):
        terms["decoder"] = Fraction(hnerv.nominal_bits(plan.autoencoder), sharers)
    if isinstance(plan.residual, LowRank):
        rank = low_rank.rank_of(plan.residual, shape)
        terms["low_rank"] = Fraction(32 * rank * min(p, q))
    return {term: bits / (p * q) for term, bits in terms.items()}


def paper_bits(
    plan: MatrixPlan, shape: tuple[int, int], source_dtype: str, *, sharers: int = 1
) -> Fraction:
    """The sum of `paper_terms`."""
    terms = paper_terms(plan, shape, source_dtype, sharers=sharers)
    return sum(terms.values(), Fraction(0))
