"""Size law of the additive quantizer: M codes of B bits for d columns of a row, and M codebooks.

A latent [p, q] is cut into p x ceil(q / d) vectors of d consecutive columns of a row; the codes of
a vector stand one after the other. M codebooks of 2^B codewords of type int8 cost 8 M d 2^B bits
and 32 for their scale; matrices of one share group store them once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from reallm_compiler.stages import AdditiveQuantizer
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.codebooks import codebook_sections
from reallm_compiler.storage.vq import code_shape, learned_vectors, sample_bytes
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.storage.work import CODEWORDS, SUMS, Work

SAMPLE = 1 << 16
"""Vectors that several codebooks are learned from together, at most."""


def _each(params: AdditiveQuantizer) -> int:
    """Multiply-accumulates that find the sum for one vector."""
    sums = 1 + (params.codebooks - 1) * params.beam
    return sums * params.dim * int(2**params.code_bits)


class AdditiveLaw(SizeLaw[AdditiveQuantizer]):
    """Codes of vectors, and codebooks."""

    def sections(
        self, params: AdditiveQuantizer, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """Codes and codebooks for a latent [p, q], and the scale of codebooks of integers."""
        codes = SectionSpec(
            role="codes",
            dtype=f"b{params.code_bits}",
            shape=(*code_shape(params, shape), params.codebooks),
            term="codes",
        )
        size = (params.codebooks, 2**params.code_bits, params.dim)
        return [codes, *codebook_sections(params.dtype, size, shared=context.shared)]

    def paper_bits(
        self, params: AdditiveQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """M B / d for each weight, and 16 M d 2^B for the codebooks."""
        return {
            "codes": params.bits * shape[0] * shape[1],
            "codebook": Fraction(16 * params.codebooks * params.dim * 2**params.code_bits),
        }

    def code_windows(self, params: AdditiveQuantizer, shape: Shape) -> CodeWindows | None:
        """The codes of a vector one after the other; None where a row of them ends in a byte."""
        if code_shape(params, shape)[1] * params.codebooks * params.code_bits % 8:
            return None
        return CodeWindows(
            window=params.code_bits,
            widths=(params.code_bits,),
            dim=params.dim,
            axis=params.axis,
            planes=1 if params.dtype == "int8" else 2,
            books=params.codebooks,
        )

    def work(self, params: AdditiveQuantizer, shape: Shape, context: Context) -> Work:
        """Every sum that is kept beside every word of the next codebook."""
        return {SUMS: math.prod(code_shape(params, shape)) * _each(params)}

    def learning_work(self, params: AdditiveQuantizer, shapes: Sequence[Shape]) -> Work:
        """k-means for one codebook after the other, then all of them together on a sample."""
        vectors = min(learned_vectors(params, shapes), SAMPLE)
        codewords = params.codebooks * params.dim * 2**params.code_bits
        joint = params.iterations * vectors * _each(params) if params.codebooks > 1 else 0
        return {CODEWORDS: params.iterations * vectors * codewords, SUMS: joint}

    def group_bytes(self, params: AdditiveQuantizer, shapes: Sequence[Shape]) -> int:
        """Sampled vectors."""
        return sample_bytes(params, shapes)
