"""What a matrix does on both sides of its codes, as tensors that kernels multiply by.

    y = gain (factors (H (before S(x'))) + L1 L2 x),   x' = after (order (H (factors x)))

S are the products with codes alone. Transforms, scales of rows, columns and the whole, orders of
columns and gains all come to these; what does not has no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ColumnOrder
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.windows import Mixing, StoredFactors, WindowValues
from reallm_compiler.kernels.form import MOST_ORDERED, Form
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.stages import ResidualStage
from reallm_compiler.storage.base import Shape


@dataclass(kw_only=True)
class Side:
    """Factors before and after the Hadamard matrices of one side, each float32 or None for ones."""

    before: Tensor | None = None
    block: int = 1
    after: Tensor | None = None

    def add(self, mixing: Mixing) -> bool:
        """Factors and then Hadamard matrices as a further step; False if it does not fit."""
        if self.block == 1:
            self.before = times(self.before, mixing.factors)
            self.block = mixing.block
            return True
        self.after = times(self.after, mixing.factors)
        return mixing.block == 1


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both sides of a matrix [p, q].

    Attributes:
        values: what the codes stand for; orders and factors are in the sides.
        inputs: applied to x; `after` is contained in `order_factors`.
        order: int32 [positions], the column at each position of the laid out inputs, q for none;
            None where inputs lie as they come.
        order_factors: float32 [positions] or None.
        outputs: applied the other way round: `after`, Hadamard matrices, `before`.
        row_scales: float32 [rows of all lines], what the sum of entries counts.
        row_shifts: of the same shape, what the sum of integers counts.
        gain: float32 [p] or None.
        group_orders: int16 [groups, positions], the column at each position of the inputs for each
            group of lines that has an order of its own; None without.
        group_lines: lines of a group.
        factors: of a residual that is a product of two.
        beside: the other residuals, which are no part of this.
    """

    values: WindowValues
    inputs: Side
    order: Tensor | None
    order_factors: Tensor | None
    outputs: Side
    row_scales: Tensor
    row_shifts: Tensor
    gain: Tensor | None
    factors: StoredFactors | None
    beside: tuple[ResidualStage, ...] = ()
    group_orders: Tensor | None = None
    group_lines: int = 0


def transform_sides(packed: PackedMatrix) -> tuple[Side, Side] | None:
    """What gains of columns and transforms do to inputs and outputs; None if it is not that."""
    inputs, outputs = Side(), Side()
    if "column_gain" in packed.sections:
        inputs.add(Mixing(factors=packed.sections["column_gain"]))
    for transform in packed.plan.transform:
        decoder = codec_of(transform).decoder(
            transform, packed.shape, packed.sections, torch.float32
        )
        mixing: tuple[Mixing, Mixing] | None = decoder.mixing()
        if mixing is None:
            return None
        for side, one in zip((inputs, outputs), mixing, strict=True):
            # Signs of rotations are made on the CPU, whatever the sections are on.
            factors = None if one.factors is None else one.factors.to(packed.device)
            if not side.add(Mixing(factors=factors, block=one.block)):
                return None
    return inputs, outputs


def sides_of(packed: PackedMatrix, form: Form) -> list[Sides] | None:
    """The sides of a packed matrix of a form, and those of further codes of the same weights.

    None for what does not come to them. Residuals and gains belong to the first ones.
    """
    whole: WindowValues = codec_of(packed.plan.quantizer).window_values(
        packed.plan.quantizer, packed.shape, packed.sections, packed.plan.scales.range
    )
    first = _sides(packed, form, whole)
    if first is None or whole.rest is None:
        return None if first is None else [first]
    rest = _sides(packed, form, whole.rest)
    return None if rest is None else [first, replace(rest, gain=None, factors=None, beside=())]


def _sides(packed: PackedMatrix, form: Form, values: WindowValues) -> Sides | None:
    """Those of some codes."""
    plan, shape, sections = packed.plan, packed.shape, packed.sections
    factors: StoredFactors | None = None
    beside = []
    for stage in plan.residual:
        found = codec_of(stage).factors(stage, sections) if factors is None else None
        factors = found or factors
        if found is None:
            beside.append(stage)
    around = transform_sides(packed)
    if around is None:
        return None
    inputs, outputs = around
    columns = groups = None
    order: ColumnOrder | None = codec_of(plan.permutation).decoder(
        plan.permutation, shape, sections
    )
    if order is not None:
        columns, until = order.coded(0)
        if order.rows is not None:
            return None
        if until is not None:
            groups, columns = _group_orders(form, shape, order, until), None
            apart = values.order is not None or values.factors is not None
            if groups is None or apart or inputs.after is not None:
                return None
    scale, zero, own = torch.ones(1), torch.zeros(1), values.factors
    unit, shift = values.unit, values.shift
    if form.blocks is not None:
        unit, shift = 1.0, 0.0
    else:
        field: ScaleField | None = codec_of(plan.scales).decoder(
            plan.scales, shape, sections, torch.float32
        )
        if field is not None and field.per == "column":
            if field.zero is not None:
                return None
            if groups is not None:
                return None
            own = times(own, field.scale)
        elif field is not None:
            if field.zero is not None and own is not None:
                return None  # a zero point has no factors of columns
            scale, zero = field.scale, zero if field.zero is None else field.zero
    laid, factors_laid = _laid_out(form, shape, columns, values.order, own, inputs.after)
    return Sides(
        values=replace(values, order=None, factors=None, rest=None),
        inputs=inputs,
        order=laid,
        order_factors=factors_laid,
        outputs=outputs,
        row_scales=_rows(form, shape, scale * unit, outputs.after),
        row_shifts=_rows(form, shape, scale * shift + zero, outputs.after),
        gain=None if "gain" not in sections else sections["gain"].to(torch.float32),
        factors=factors,
        beside=tuple(beside),
        group_orders=groups,
        group_lines=0 if groups is None or until is None else until // form.line_rows,
    )


def _laid_out(
    form: Form,
    shape: tuple[int, int],
    permuted: Tensor | None,
    coded: Tensor | None,
    own: Tensor | None,
    after: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """`Sides.order` and `Sides.order_factors`.

    Args:
        form: of the codes.
        shape: p and q.
        permuted: int64 [q], the matrix's columns in the order of the latent; None for their own.
        coded: int64 [q], the latent's columns in the order of the codes.
        own: factors [q] of the latent's columns.
        after: factors [q] of the matrix's columns.
    """
    if form.streams == 1 and all(part is None for part in (permuted, coded, own, after)):
        return None, None
    q = shape[1]
    latent = torch.arange(q) if coded is None else coded
    columns = latent if permuted is None else permuted[latent]
    factors = times(None if own is None else own[latent], None if after is None else after[columns])
    missing = form.padded_columns(shape) - q
    columns = torch.nn.functional.pad(columns, (0, missing), value=q)
    streams = columns.view(-1, form.streams).t().reshape(-1)
    if factors is not None:
        factors = torch.nn.functional.pad(factors, (0, missing))
        factors = factors.view(-1, form.streams).t().reshape(-1)
    return streams.to(torch.int32), factors


def _group_orders(form: Form, shape: Shape, order: ColumnOrder, rows: int) -> Tensor | None:
    """`Sides.group_orders` for groups of so many rows; None for what has none."""
    (p, q), missing = shape, form.padded_columns(shape) - shape[1]
    if rows % form.line_rows or form.streams > 1 or form.spread > 1 or q + missing > MOST_ORDERED:
        return None
    found = []
    for first in range(0, p, rows):
        columns, _ = order.coded(first)
        if columns is None:
            return None
        found.append(torch.nn.functional.pad(columns, (0, missing), value=q))
    return torch.stack(found).to(torch.int16)


def _rows(form: Form, shape: tuple[int, int], numbers: Tensor, after: Tensor | None) -> Tensor:
    """Numbers [p] or [1], times factors [p], for the rows of all lines."""
    each = numbers.expand(shape[0]) * (1 if after is None else after)
    return torch.nn.functional.pad(each, (0, form.lines(shape) * form.line_rows - shape[0]))


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of factors, float32; None stands for ones."""
    if a is None or b is None:
        found = a if b is None else b
        return None if found is None else found.to(torch.float32)
    return a.to(torch.float32) * b.to(torch.float32)
