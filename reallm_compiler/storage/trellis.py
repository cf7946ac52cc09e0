"""Size law of the trellis quantiser: codes of b bits and one table of 2^memory values.

With bits = b + f, b whole, ceil(f q) of the q columns are wide: their codes have one bit more,
which is stored in a section of its own beside a mask of the wide columns, and they have a table
of their own. For 9/4 bits at 4096 x 4096: 2 + 1/4 + 1/4096 (mask) and 16 x 2 x 2^memory bits once.
"""

from __future__ import annotations

from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_compiler.storage.values import Finite, Ones
from reallm_compiler.units import ceil_div


def wide_columns(params: TrellisQuantizer, columns: int) -> int:
    """How many of `columns` columns have codes of one bit more."""
    numerator, denominator = params.bits.numerator, params.bits.denominator
    return ceil_div(numerator % denominator * columns, denominator)


def sections(
    params: TrellisQuantizer, shape: tuple[int, int], *, shared: bool
) -> list[SectionSpec]:
    """Sections of codes and tables for a latent [p, q]."""
    p, q = shape
    low = params.widths[0]
    specs = [SectionSpec(role="codes", dtype=f"b{low}", shape=(p, q), term="codes")]
    if len(params.widths) > 1:
        wide = wide_columns(params, q)
        specs += [
            SectionSpec(role="high_bits", dtype="b1", shape=(p, wide), term="codes"),
            SectionSpec(role="wide", dtype="b1", shape=(q,), term="codes", values=Ones(wide)),
        ]
    specs.append(
        SectionSpec(
            role="codebook",
            dtype=DTYPES[params.dtype],
            shape=(len(params.widths), 2**params.memory),
            term="codebook",
            shared=shared,
            values=Finite(),
        )
    )
    return specs
