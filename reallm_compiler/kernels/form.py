"""The form of a matrix's codes: what a kernel is written from, and what it may take for granted.

A form is pure data and can be hashed: matrices of one form share compiled code, whatever their
extents. Shapes and plans that no form describes go the plain way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import Context, Shape
from reallm_compiler.storage.registry import size_law_of
from reallm_compiler.storage.windows import CodeWindows, ScaleArrays
from reallm_compiler.units import ceil_div

STEP = 64
"""Codes that a kernel takes in one step."""

LANES = 16
"""Numbers of a vector of float32; rows and columns of inputs come in multiples of so many."""

MOST_COLUMNS = 1 << 16
"""Columns whose products surely fit into 32 bits: 2^16 x 255 x 127 < 2^31."""

TOGETHER = 8
"""Columns of a code that are looked up at once: a load of 8 bytes."""

MOST_ORDERED = 1 << 14
"""Columns of a matrix with several orders of them, at most: activations are put in order on the
stack of a thread."""

MOST_WINDOW = 16
"""Bits of the widest window."""

MOST_BLOCK = 4096
"""Weights of a block with a scale, at most: their sums are taken in 32 bits."""

SCALE_DTYPES = ("f32", "f16", "bf16")
"""Stored types of scales of blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The codes of a latent, and scales within its rows.

    Attributes:
        codes: how codes are read.
        blocks: scales of blocks of a row; None where scales belong to rows, columns or the whole,
            and are factors of outputs and inputs.
        whole: a line is whole periods, so that no step reads beyond it.
        orders: groups of lines have orders of columns of their own.
    """

    codes: CodeWindows
    blocks: ScaleArrays | None = None
    whole: bool = False
    orders: bool = False

    @property
    def line_rows(self) -> int:
        """Rows that a line of codes stands for."""
        return self.codes.dim if self.codes.axis == "rows" else 1

    @property
    def together(self) -> bool:
        """Whether all columns of a code are looked up at once, so that inputs lie as they come."""
        return self.codes.axis == "cols" and self.codes.dim == TOGETHER

    @property
    def streams(self) -> int:
        """Columns of a code that lie apart: inputs are laid out as so many vectors."""
        return self.codes.dim if self.codes.axis == "cols" and not self.together else 1

    @property
    def spread(self) -> int:
        """Columns from what a code stands for to what the next one does."""
        return self.codes.dim // self.codes.books if self.together else 1

    @property
    def period(self) -> int:
        """Codes after which kernels repeat: steps of `STEP` whose bits are whole bytes."""
        count = STEP
        while count % len(self.codes.widths) or self.bits(count) % 8:
            count += STEP
        return count

    def bits(self, count: int) -> int:
        """Bits of the first `count` codes of a line; whole periods of widths or a part of one."""
        widths = self.codes.widths
        return count // len(widths) * sum(widths) + sum(widths[: count % len(widths)])

    def lines(self, shape: Shape) -> int:
        """Lines of codes of a latent [p, q]."""
        return ceil_div(shape[0], self.line_rows)

    def line_codes(self, shape: Shape) -> int:
        """Codes of a line of a latent [p, q]."""
        if self.together:
            return ceil_div(shape[1], self.codes.dim) * self.codes.books
        return ceil_div(shape[1], self.streams)

    def padded_codes(self, shape: Shape) -> int:
        """Codes of a line with those that only zeros of inputs meet, up to whole periods."""
        return ceil_div(self.line_codes(shape), self.period) * self.period

    def padded_columns(self, shape: Shape) -> int:
        """Columns of the inputs of a line, up to whole periods."""
        return self.padded_codes(shape) * self.streams * self.spread


def form_of(plan: MatrixPlan, shape: Shape) -> Form | None:
    """The form of a matrix [p, q] under a plan; None if kernels know none."""
    if plan.autoencoder.trained or shape[1] % LANES or not 0 < shape[1] <= MOST_COLUMNS:
        return None
    codes: CodeWindows | None = size_law_of(plan.quantizer).code_windows(plan.quantizer, shape)
    scales = size_law_of(plan.scales)
    arrays: ScaleArrays | None = scales.scale_arrays(plan.scales)
    context = Context(source_dtype="f32")
    if arrays is None and scales.sections(plan.scales, shape, context):
        return None
    if codes is None or codes.window > MOST_WINDOW:
        return None
    form = Form(codes=codes)
    if (codes.dim > 4 or codes.books > 1) and not form.together:
        return None
    if codes.dim % codes.books:
        return None
    if (codes.dim > 1 and codes.planes > 1) or max(codes.widths) > codes.window:
        return None
    form = form_for(codes, form, shape)
    if arrays is None or arrays.per != "block":
        return form
    whole = shape[1] % arrays.block == 0 and (arrays.block in (16, 32) or arrays.block % STEP == 0)
    if not whole or arrays.dtype not in SCALE_DTYPES or arrays.block > MOST_BLOCK // codes.dim:
        return None
    if codes.dim > 1 and (codes.axis == "cols" or arrays.block % STEP):
        return None
    if len(codes.widths) > 1 or codes.widths[0] != codes.window:
        return None  # blocks lie on columns in their own order
    return replace(form, blocks=arrays)


def form_for(codes: CodeWindows, form: Form, shape: Shape) -> Form:
    """The form of other codes of the same latent [p, q]."""
    own = replace(form, codes=codes)
    return replace(own, whole=own.line_codes(shape) % own.period == 0)
