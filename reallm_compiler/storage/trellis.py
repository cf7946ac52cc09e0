"""Size law of the trellis quantizer: codes of b bits and one table of 2^memory values.

With bits = b + f, b whole, ceil(f q) of the q columns are wide: their codes have one bit more,
which is stored in a section of its own beside a mask of the wide columns, and they have a table
of their own. For 9/4 bits at 4096 x 4096: 2 + 1/4 + 1/4096 (mask) and 16 x 2 x 2^memory bits once.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.base import DTYPES, Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.values import Finite, Ones
from reallm_compiler.units import ceil_div

SEGMENT = 128
"""Values of a sequence that a table is learned from."""

SAMPLES = 64
"""Values for each entry of a table that it is learned from, and at least `LEAST_SEGMENTS`."""

LEAST_SEGMENTS = 128

DECIDED = 256
"""Steps that a window of the search decides."""

AHEAD = 48
"""Steps that a window looks beyond: several times the memory of any trellis."""

DEVICE_LANES = 1 << 22
"""States times sequences that are searched side by side on an accelerator."""


def wide_columns(params: TrellisQuantizer, columns: int) -> int:
    """How many of `columns` columns have codes of one bit more."""
    numerator, denominator = params.bits.numerator, params.bits.denominator
    return ceil_div(numerator % denominator * columns, denominator)


def sample_segments(params: TrellisQuantizer, sharers: int) -> int:
    """Segments that are sampled of each of so many latents, for each width."""
    wanted = max(LEAST_SEGMENTS, SAMPLES * 2**params.memory // SEGMENT)
    return ceil_div(wanted, sharers)


class TrellisLaw(SizeLaw[TrellisQuantizer]):
    """Codes of one or two widths, and a table for each."""

    def sections(
        self, params: TrellisQuantizer, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """Codes and tables for a latent [p, q]."""
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
                shared=context.shared,
                values=Finite(),
            )
        )
        return specs

    def paper_bits(
        self, params: TrellisQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """b for each weight, and 16 2^memory for each table."""
        return {
            "codes": Fraction(params.bits) * shape[0] * shape[1],
            "codebook": Fraction(16 * len(params.widths) * 2**params.memory),
        }

    def cost(self, params: TrellisQuantizer, shape: Shape, context: Context) -> Cost:
        """The costs of a window of the search on a GPU."""
        window = min(DECIDED + AHEAD, shape[1])
        return Cost(device_bytes=window * 4 * DEVICE_LANES >> min(params.widths))

    def group_bytes(self, params: TrellisQuantizer, shapes: Sequence[Shape]) -> int:
        """Sampled segments and their weights in float32, gathered and joined."""
        joined = 2 * sample_segments(params, len(shapes)) * len(shapes)
        return joined * len(params.widths) * 8 * SEGMENT
