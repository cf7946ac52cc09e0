"""Size law of vector quantisation: b d bits per vector and a codebook of 2^(bd) codewords.

A latent [p, q] is cut into vectors of dimension d: along `rows`, ceil(p / d) x q vectors of d
consecutive rows in one column; along `cols`, p x ceil(q / d) vectors of d consecutive columns in
one row. A ragged edge is padded and its padding is stored. The codebook costs d x 2^(bd) x 16
bits (paper, Table 5); matrices of one share group store it once.
"""

from __future__ import annotations

from reallm_compiler.stages import VectorQuantizer
from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_compiler.storage.values import Finite
from reallm_compiler.units import ceil_div


def code_shape(params: VectorQuantizer, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the grid of codes for a latent [p, q]."""
    p, q = shape
    if params.axis == "rows":
        return ceil_div(p, params.dim), q
    return p, ceil_div(q, params.dim)


def sections(params: VectorQuantizer, shape: tuple[int, int], *, shared: bool) -> list[SectionSpec]:
    """Sections of codes and codebook for a latent [p, q]."""
    return [
        SectionSpec(
            role="codes",
            dtype=f"b{params.index_bits}",
            shape=code_shape(params, shape),
            term="codes",
        ),
        SectionSpec(
            role="codebook",
            dtype=DTYPES[params.dtype],
            shape=(2**params.index_bits, params.dim),
            term="codebook",
            shared=shared,
            values=Finite(),
        ),
    ]
