"""Size law of the trellis quantizer: a stream of codes for each row, and one table.

With bits = b + f, b whole, ceil(f q) of the q columns have codes of one bit more: which ones is
the data's choice and is stored as a mask, with one factor for their values. In the stream they lie
evenly spread between the others, so that widths have a fixed pattern, of period 16 where q is a
multiple of 16. A table of type int8
costs 8 x 2^state_bits bits and 32 for its scale, and matrices of one share group store it once.
For 35/16 bits at 4096 x 4096: 35/16 + 1/4096 (mask), 32 bits (factor), and 8 x 1024 + 32 bits
once for the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.base import Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.codebooks import codebook_sections
from reallm_compiler.storage.values import Finite, Ones
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.storage.work import PATHS, Work
from reallm_compiler.units import ceil_div

SEGMENT = 128
"""Columns of a piece of a row that a table is learned from, a multiple of 16."""

SAMPLES = 256
"""Values for each entry of a table that it is learned from, and at least `LEAST_SEGMENTS`."""

LEAST_SEGMENTS = 128

COVERAGE = 16
"""How often each weight of a small latent is sampled, about: more would teach nothing new."""

LEARNING_PATHS = 64
"""Paths of the search while a table is learned, at most."""

WINDOW = 64
"""Columns that the paths of a search remember, a multiple of 16."""

DEVICE_ROWS = 4096
"""Rows that are searched side by side on an accelerator."""

PERIOD = 16
"""Columns after which the pattern of widths repeats, in rows of a multiple of so many."""

WORD = 4
"""Bytes of a word; a row is padded to words where that adds little."""

PADDING = 128
"""A row is padded to words if at most one in so many of its bits is padding, else to bytes."""


def high_rate_columns(params: TrellisQuantizer, columns: int) -> int:
    """How many of `columns` columns have codes of one bit more."""
    numerator, denominator = params.bits.numerator, params.bits.denominator
    return ceil_div(numerator % denominator * columns, denominator)


@lru_cache(maxsize=256)
def column_widths(params: TrellisQuantizer, columns: int) -> tuple[int, ...]:
    """Bits of each code of a row, in the coded order: high-rate columns are evenly spread."""
    low, high = params.widths[0], high_rate_columns(params, columns)
    return tuple(
        low + (high * (index + 1) // columns - high * index // columns) for index in range(columns)
    )


def row_bytes(params: TrellisQuantizer, columns: int) -> int:
    """Bytes of the stream of one row.

    Rows begin at whole words, which GPUs load at once. Only where rows are so short that the
    padding would weigh (`PADDING`) they begin at whole bytes.
    """
    bits = params.widths[0] * columns + high_rate_columns(params, columns)
    words = ceil_div(bits, 8 * WORD)
    if (8 * WORD * words - bits) * PADDING <= bits:
        return WORD * words
    return ceil_div(bits, 8)


def sample_segments(params: TrellisQuantizer, shape: Shape, sharers: int) -> int:
    """Segments that are sampled of a latent [p, q], one of `sharers` latents."""
    wanted = max(LEAST_SEGMENTS, SAMPLES * 2**params.state_bits // SEGMENT)
    return min(ceil_div(wanted, sharers), ceil_div(COVERAGE * shape[0] * shape[1], SEGMENT))


class TrellisLaw(SizeLaw[TrellisQuantizer]):
    """A stream for each row, a mask of high-rate columns, and a table."""

    def sections(
        self, params: TrellisQuantizer, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """Codes and table for a latent [p, q]."""
        p, q = shape
        specs = [
            SectionSpec(role="codes", dtype="u8", shape=(p, row_bytes(params, q)), term="codes")
        ]
        if len(params.widths) > 1:
            values = Ones(high_rate_columns(params, q))
            positive = Finite(negative=False, zero=False)
            specs += [
                SectionSpec(role="high_rate", dtype="b1", shape=(q,), term="codes", values=values),
                SectionSpec(
                    role="high_rate_scale", dtype="f32", shape=(1,), term="scales", values=positive
                ),
            ]
        if params.learns_tables:
            size = (2**params.state_bits,)
            specs += codebook_sections(params.dtype, size, shared=context.shared)
        return specs

    def paper_bits(
        self, params: TrellisQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """b for each weight, and 16 2^state_bits for a table that is learned."""
        terms = {"codes": Fraction(params.bits) * shape[0] * shape[1]}
        if params.learns_tables:
            terms["codebook"] = Fraction(16 * 2**params.state_bits)
        return terms

    def cost(self, params: TrellisQuantizer, shape: Shape, context: Context) -> Cost:
        """The memory of a search on a GPU: of each path its past, and costs of all its codes."""
        paths = min(params.paths, 2**params.state_bits)
        each = WINDOW * (8 + 1 + 2 * 4) + 40 * 2 ** params.widths[-1]
        return Cost(device_bytes=min(DEVICE_ROWS, shape[0]) * paths * each)

    def work(self, params: TrellisQuantizer, shape: Shape, context: Context) -> Work:
        """A step of every path for every weight."""
        return {PATHS: shape[0] * shape[1] * min(params.paths, 2**params.state_bits)}

    def learning_work(self, params: TrellisQuantizer, shapes: Sequence[Shape]) -> Work:
        """Passes over sampled segments."""
        if not params.learns_tables:
            return {}
        segments = sum(sample_segments(params, shape, len(shapes)) for shape in shapes)
        paths = min(params.paths, LEARNING_PATHS, 2**params.state_bits)
        return {PATHS: params.iterations * segments * SEGMENT * paths}

    def code_windows(self, params: TrellisQuantizer, shape: Shape) -> CodeWindows | None:
        """States; None for rows in which the wide codes have no period of `PERIOD`."""
        widths = column_widths(params, shape[1])
        period = widths[:1] if len(params.widths) == 1 else widths[:PERIOD]
        if shape[1] % PERIOD or period * (shape[1] // len(period)) != widths:
            return None
        planes = 1 if params.learns_tables and params.dtype == "int8" else 2
        return CodeWindows(
            window=params.state_bits,
            widths=period,
            planes=planes,
            computed=not params.learns_tables,
        )

    def group_bytes(self, params: TrellisQuantizer, shapes: Sequence[Shape]) -> int:
        """Sampled segments with their scales in float32, gathered and joined."""
        segments = sum(sample_segments(params, shape, len(shapes)) for shape in shapes)
        return 2 * segments * 8 * SEGMENT
