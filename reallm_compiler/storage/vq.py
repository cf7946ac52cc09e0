"""Size law of vector quantization: b d bits per vector and a codebook of 2^(bd) codewords.

A latent [p, q] is cut into vectors of dimension d: along `rows`, ceil(p / d) x q vectors of d
consecutive rows in one column; along `cols`, p x ceil(q / d) vectors of d consecutive columns in
one row. A ragged edge is padded and its padding is stored. A codebook of type int8 costs
d x 2^(bd) x 8 bits and 32 for its scale; the paper counts d x 2^(bd) x 16 (Table 5). Matrices of
one share group store it once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from reallm_compiler.stages import VectorQuantizer
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.codebooks import codebook_sections
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.storage.work import CODEWORDS, Work
from reallm_compiler.units import ceil_div

SHARED_VECTORS = 1 << 22
"""Vectors of several latents that a common codebook is learned from, in all."""

LEAST_VECTORS = 1 << 10
"""Vectors of each latent, at least, where it has as many."""


class VectorGrid(Protocol):
    """How a latent is cut into vectors."""

    @property
    def dim(self) -> int:
        """Dimension d of a vector."""
        ...

    @property
    def axis(self) -> str:
        """Whether it lies along `rows` or along `cols`."""
        ...


def code_shape(params: VectorGrid, shape: Shape) -> Shape:
    """Rows and columns of the grid of codes for a latent [p, q]."""
    p, q = shape
    if params.axis == "rows":
        return ceil_div(p, params.dim), q
    return p, ceil_div(q, params.dim)


class VectorLaw(SizeLaw[VectorQuantizer]):
    """Codes of vectors, and a codebook."""

    def sections(
        self, params: VectorQuantizer, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """Codes and codebook for a latent [p, q], and the scale of a codebook of integers."""
        codes = SectionSpec(
            role="codes",
            dtype=f"b{params.index_bits}",
            shape=code_shape(params, shape),
            term="codes",
        )
        size = (2**params.index_bits, params.dim)
        return [codes, *codebook_sections(params.dtype, size, shared=context.shared)]

    def paper_bits(
        self, params: VectorQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """b for each weight, and 16 d 2^(bd) for the codebook."""
        return {
            "codes": Fraction(params.bits) * shape[0] * shape[1],
            "codebook": Fraction(16 * params.dim * 2**params.index_bits),
        }

    def code_windows(self, params: VectorQuantizer, shape: Shape) -> CodeWindows | None:
        """Indices; None where a line of the grid of codes ends within a byte."""
        if code_shape(params, shape)[1] * params.index_bits % 8:
            return None
        return CodeWindows(
            window=params.index_bits,
            widths=(params.index_bits,),
            dim=params.dim,
            axis=params.axis,
            planes=1 if params.dtype == "int8" else 2,
        )

    def work(self, params: VectorQuantizer, shape: Shape, context: Context) -> Work:
        """Every vector beside every word."""
        return {CODEWORDS: math.prod(code_shape(params, shape)) * params.dim * 2**params.index_bits}

    def learning_work(self, params: VectorQuantizer, shapes: Sequence[Shape]) -> Work:
        """k-means."""
        vectors = learned_vectors(params, shapes)
        return {CODEWORDS: params.iterations * vectors * params.dim * 2**params.index_bits}

    def group_bytes(self, params: VectorQuantizer, shapes: Sequence[Shape]) -> int:
        """Sampled vectors."""
        return sample_bytes(params, shapes)


def learned_vectors(params: VectorGrid, shapes: Sequence[Shape]) -> int:
    """Vectors that a codebook of these latents is learned from."""
    most = vectors_of_each(len(shapes)) if len(shapes) > 1 else None
    counts = [math.prod(code_shape(params, shape)) for shape in shapes]
    return sum(count if most is None else min(count, most) for count in counts)


def sample_bytes(params: VectorGrid, shapes: Sequence[Shape]) -> int:
    """Memory of the vectors that are sampled of some latents, and of their weights, in float32."""
    most = vectors_of_each(len(shapes))
    counts = (math.prod(code_shape(params, shape)) for shape in shapes)
    return sum(min(count, most) for count in counts) * params.dim * 8


def vectors_of_each(sharers: int) -> int:
    """Vectors that are sampled of each latent of a group of so many, at most."""
    return max(SHARED_VECTORS // sharers, LEAST_VECTORS)
