"""What the Triton kernels need to know of a packed matrix, as tensors and numbers.

Kernels are compiled for the numbers in `Codes.constants`; matrices of one form share them. What a
form cannot say goes the plain way: `codes_of` returns None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.quantizers.trellis_table import COMPUTED_DEVIATION, MULTIPLIER
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.windows import LOW, WindowValues
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.sides import times
from reallm_compiler.storage.registry import size_law_of
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.units import ceil_div

SLOTS = 16
"""Codes of a group, and the period of all patterns of widths."""

GROUPS = 32
"""Groups of a block: one for each thread of a warp."""

PLACES = SLOTS * GROUPS
"""Columns of a block."""

MOST_WINDOW = 16
"""Bits of the widest window: two words hold it wherever it begins."""

TILE_ROWS = 16
"""Rows of a program; they have one order of columns."""

HALF_INTEGERS = 2048
"""Integers up to this are exact in float16."""

DIMS = (1, 2, 4)
"""Elements of a codeword that fit into an int32."""

Constants = dict[str, int | float | bool]
"""Values of a kernel's arguments in capitals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Array:
    """Scales of runs of groups, or their zero points, as they are stored.

    Attributes:
        values: numbers, or codes of one byte.
        supers: super-scales of codes.
        offset: what is added to codes times super-scales [1].
        each: codes that share a super-scale; 0 for numbers.
    """

    values: Tensor
    supers: Tensor
    offset: Tensor
    each: int = 0

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the order of the kernels' arguments."""
        return self.values, self.supers, self.offset


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """The coded part of a matrix before its transforms are undone, for the kernels.

    Attributes:
        shape: (p, q).
        words: int32 [n], the codes.
        table: float16 or float32 [2^window], or int32 [2^window] of the bytes of a codeword, each
            128 more than what is meant.
        unit: what an entry counts.
        scales, zeros: of runs of groups.
        runs: runs of a row; 0 if scales act elsewhere.
        row_factors: float32 [p].
        column_factors: float32 [places of a line].
        columns: int16 or int32 [orders, places of a line], the column at each place; -1 for none.
        lines_per_order: lines that have the same order.
        line_bits: bits from one line to the next.
        constants: for which kernels are compiled.
    """

    shape: tuple[int, int]
    words: Tensor
    table: Tensor
    unit: float
    scales: Array
    zeros: Array
    runs: int
    row_factors: Tensor | None
    column_factors: Tensor | None
    columns: Tensor | None
    lines_per_order: int
    line_bits: int
    constants: Constants

    @property
    def dim(self) -> int:
        """Rows of a line."""
        return int(self.constants["DIM"])

    @property
    def lines(self) -> int:
        """Lines of the matrix."""
        return ceil_div(self.shape[0], self.dim)

    @property
    def groups(self) -> int:
        """Groups of a line."""
        return ceil_div(self.shape[1], SLOTS)

    @property
    def blocks(self) -> int:
        """Blocks of a line."""
        return ceil_div(self.groups, GROUPS)

    @property
    def orders(self) -> int:
        """Orders of columns."""
        return 1 if self.columns is None else len(self.columns)


def codes_of(packed: PackedMatrix, row_factors: Tensor | None = None) -> Codes | None:
    """The codes of a packed matrix on its device; None for a form that kernels do not know.

    Args:
        packed: the matrix.
        row_factors: float32 [p], of the rows beside their scales.
    """
    plan, shape, sections = packed.plan, packed.shape, packed.sections
    if plan.autoencoder.trained:
        return None
    windows: CodeWindows | None = size_law_of(plan.quantizer).code_windows(plan.quantizer, shape)
    if windows is None or windows.axis != "rows" or windows.window > MOST_WINDOW:
        return None
    pattern = _pattern(windows.widths)
    if pattern is None or windows.dim not in DIMS or (windows.dim > 1 and windows.planes > 1):
        return None
    codec = codec_of(plan.quantizer)
    values: WindowValues = codec.window_values(plan.quantizer, shape, sections, plan.scales.range)
    table = _table(windows, values)
    orders = _orders(packed, values, windows.dim)
    scaled = _scaled(packed, values)
    if table is None or orders is None or scaled is None:
        return None
    return Codes(
        shape=shape,
        words=_words(sections["codes"]),
        table=table[0].to(packed.device),
        unit=table[1] * scaled.unit,
        scales=scaled.scales,
        zeros=scaled.zeros,
        runs=scaled.runs,
        row_factors=times(scaled.row_factors, row_factors),
        column_factors=_placed(scaled.column_factors, values.order, shape[1]),
        columns=orders[0],
        lines_per_order=orders[1],
        line_bits=_line_bits(packed, windows),
        constants={
            "LOW": pattern[0],
            "HIGH": pattern[1],
            "STATE": windows.window,
            "DIM": windows.dim,
            "COMPUTED": windows.computed,
            "MULTIPLIER": MULTIPLIER,
            "RUN": scaled.run,
            "SCALE_SUPER": scaled.scales.each,
            "SCALE_LEVELS": 255,
            "ZEROS": scaled.has_zeros,
            "ZERO_SUPER": scaled.zeros.each,
            "ZERO_LEVELS": 255,
            "GROUPS": GROUPS,
        },
    )


def _pattern(widths: tuple[int, ...]) -> tuple[int, int] | None:
    """The width of most codes, and how many of 16 have one bit more; None for other patterns."""
    low, high = widths[0], sum(widths) - widths[0] * len(widths)
    spread = tuple(
        low + high * (slot + 1) // SLOTS - high * slot // SLOTS for slot in range(len(widths))
    )
    return (low, high) if len(widths) in (1, SLOTS) and widths == spread else None


def _words(codes: Tensor) -> Tensor:
    """Codes as 32-bit words; a copy only where they are no whole words."""
    flat = codes.reshape(-1)
    if flat.numel() % 4 or flat.data_ptr() % 4:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 4)).clone()
    return flat.view(torch.int32)


def _table(windows: CodeWindows, values: WindowValues) -> tuple[Tensor, float] | None:
    """The table as kernels look it up, and what an entry counts."""
    if windows.computed:
        return torch.zeros(1), 1 / COMPUTED_DEVIATION
    if windows.dim > 1:
        if values.table is None or values.shift:
            return None
        size = len(values.table[0])
        entries = values.table[0].to(torch.int16) + 128
        padded = torch.zeros(size, 4, dtype=torch.uint8)
        padded[:, : windows.dim] = entries.to(torch.uint8)
        return padded.view(torch.int32).view(-1), values.unit
    if values.table is None:
        entries = torch.arange(2**windows.window) - 2 ** (windows.window - 1)
    else:
        planes = values.table[..., 0].to(torch.int32).cpu()  # [planes, 2^window]
        entries = planes[0] if len(planes) == 1 else LOW * planes[0] + planes[1]
    if values.shift:
        return (entries.to(torch.float64) * values.unit + values.shift).to(torch.float32), 1.0
    exact = int(entries.abs().max()) <= HALF_INTEGERS
    return entries.to(torch.float16 if exact else torch.float32), values.unit


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scaled:
    """Where the scales of a latent act.

    Attributes:
        unit: a factor of all weights.
        run: groups that share a scale; 0 for none.
        column_factors: float32 [q], of the latent's columns.
    """

    scales: Array
    zeros: Array
    unit: float = 1.0
    run: int = 0
    runs: int = 0
    has_zeros: bool = False
    row_factors: Tensor | None = None
    column_factors: Tensor | None = None


def _scaled(packed: PackedMatrix, values: WindowValues) -> _Scaled | None:
    """The scales of a matrix, those of columns together with the factors of its codes."""
    plan, (_, q) = packed.plan, packed.shape
    field: ScaleField | None = codec_of(plan.scales).decoder(
        plan.scales, packed.shape, packed.sections, torch.float32
    )
    nothing = torch.zeros(1, device=packed.device)
    none = Array(values=nothing, supers=nothing, offset=nothing)
    factors = None if values.factors is None else values.factors.to(packed.device)
    if field is None:
        return _Scaled(scales=none, zeros=none, column_factors=factors)
    if field.zero is None and field.per == "tensor":
        unit = float(field.scale)
        return _Scaled(scales=none, zeros=none, unit=unit, column_factors=factors)
    if field.zero is None and field.per == "row":
        return _Scaled(
            scales=none, zeros=none, row_factors=field.scale.contiguous(), column_factors=factors
        )
    if field.zero is None and field.per == "column":
        both = field.scale if factors is None else field.scale * factors
        return _Scaled(scales=none, zeros=none, column_factors=both)
    if field.per not in ("row", "block") or factors is not None or values.order is not None:
        return None
    run = q if field.per == "row" else field.block
    if q % run or (run % SLOTS and run != q):
        return None
    return _Scaled(
        scales=_array(packed, "scales", field.scale),
        zeros=none if field.zero is None else _array(packed, "zeros", field.zero),
        run=ceil_div(run, SLOTS),
        runs=q // run,
        has_zeros=field.zero is not None,
    )


def _array(packed: PackedMatrix, name: str, decoded: Tensor) -> Array:
    """The array `name` as it is stored, if kernels read that, else decoded float32 [groups]."""
    sections = packed.sections
    stored, supers = sections.get(name), sections.get(f"{name}_super")
    offset = sections.get(f"{name}_offset")
    if stored is not None and supers is not None and offset is not None:
        arrays = size_law_of(packed.plan.scales).scale_arrays(packed.plan.scales)
        array = None if arrays is None else getattr(arrays, name)
        if array is not None and array.bits == 8 and arrays.offset == "matrix":
            return Array(values=stored, supers=supers, offset=offset, each=array.superblock)
    elif stored is not None and stored.is_floating_point():
        return Array(values=stored, supers=stored, offset=stored)
    decoded = decoded.contiguous()
    return Array(values=decoded, supers=decoded, offset=decoded)


def _orders(
    packed: PackedMatrix, values: WindowValues, dim: int
) -> tuple[Tensor | None, int] | None:
    """Columns by places for each order of columns, and the lines that share one."""
    plan, (p, q) = packed.plan, packed.shape
    order = codec_of(plan.permutation).decoder(plan.permutation, packed.shape, packed.sections)
    own = torch.arange(q) if values.order is None else values.order.cpu()  # by code
    if order is None and values.order is None:
        return None, ceil_div(p, dim)
    if order is not None and order.rows is not None:
        return None
    found, first, shared = [], 0, p
    while first < p:
        columns, after = (None, None) if order is None else order.coded(first)
        found.append(own if columns is None else columns.cpu()[own])
        after = p if after is None else after
        shared = after if first == 0 else shared
        first = after
    if len(found) > 1 and shared % TILE_ROWS:
        return None
    wide = torch.stack(found)
    table = torch.full((len(found), _places(q)), -1)
    codes = _codes_at_places(q)
    table[:, codes < q] = wide[:, codes[codes < q]]
    small = torch.int16 if q <= torch.iinfo(torch.int16).max else torch.int32
    return table.to(small).to(packed.device), ceil_div(shared, dim)


def _placed(factors: Tensor | None, order: Tensor | None, q: int) -> Tensor | None:
    """Factors [q] of the latent's columns, by places; 0 behind the last."""
    if factors is None:
        return None
    by_code = factors if order is None else factors[order.to(factors.device)]
    codes = _codes_at_places(q).to(factors.device)
    placed = factors.new_zeros(len(codes))
    placed[codes < q] = by_code[codes[codes < q]].to(placed.dtype)
    return placed.to(torch.float32)


def _places(q: int) -> int:
    return ceil_div(q, PLACES) * PLACES


def _codes_at_places(q: int) -> Tensor:
    """int64 [places]: the code at each place of a line, [blocks, slot, group]."""
    return torch.arange(_places(q)).view(-1, GROUPS, SLOTS).transpose(1, 2).reshape(-1)


def _line_bits(packed: PackedMatrix, windows: CodeWindows) -> int:
    """Bits from one line to the next: whole bytes of a stream of its own, or dense codes."""
    codes = packed.sections["codes"]
    return 8 * codes.shape[1] if codes.ndim == 2 else windows.window * packed.shape[1]
