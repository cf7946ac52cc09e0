"""Triton kernels on activations: what is done to them before and after a product with codes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mixed(values, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Orthogonal Hadamard matrices times blocks of 2^STEPS = BLOCK numbers of values [SIZE]."""
    for step in tl.static_range(STEPS):
        pairs = tl.reshape(values, (SIZE // (2 << step), 2, 1 << step))
        left, right = tl.split(tl.permute(pairs, (0, 2, 1)))
        both = tl.join(left + right, left - right)
        values = tl.reshape(tl.permute(both, (0, 2, 1)), (SIZE,))
    return values * (BLOCK**-0.5)


@triton.jit
def rotate(
    x,
    factors,
    out,
    columns,
    FACTORS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """H (factors * x) of inputs x [n, columns], into out of the same shape."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < columns
    row = tl.program_id(1).to(tl.int64) * columns
    values = tl.load(x + row + at, mask=inside, other=0).to(tl.float32)
    if FACTORS:
        values *= tl.load(factors + at, mask=inside, other=0)
    values = _mixed(values, SIZE, BLOCK, STEPS)
    tl.store(out + row + at, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def arrange(
    x,
    order,
    factors,
    out,
    inputs,
    columns,
    places,
    orders,
    ORDER: tl.constexpr,
    FACTORS: tl.constexpr,
    TOGETHER: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Inputs x [inputs, columns] as a product takes them, in
    out [chunks of TOGETHER inputs, orders, blocks, 16, TOGETHER, GROUPS].

    A program fills a block [16, GROUPS] of one input. There are zeros behind the last column and
    the last input.

    Args:
        order: int [orders, places], the column at each place; -1 for none.
        factors: float32 [places], by which inputs are multiplied.
        places: of one order, 16 x GROUPS x blocks.
    """
    block, index, turn = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.arange(0, 16)[:, None]
    lane = tl.arange(0, GROUPS)[None, :]
    place = block * (16 * GROUPS) + slot * GROUPS + lane
    if ORDER:
        column = tl.load(order + turn.to(tl.int64) * places + place).to(tl.int32)
    else:
        column = (block * GROUPS + lane) * 16 + slot
    inside = (column >= 0) & (column < tl.where(index < inputs, columns, 0))
    values = tl.load(x + index.to(tl.int64) * columns + column, mask=inside, other=0).to(tl.float32)
    if FACTORS:
        values *= tl.load(factors + place)
    chunk, inner = index // TOGETHER, index % TOGETHER
    to = (chunk * orders + turn).to(tl.int64) * places + block * (16 * GROUPS)
    to = to * TOGETHER + (slot * TOGETHER + inner) * GROUPS + lane
    tl.store(out + to, values.to(out.dtype.element_ty))


@triton.jit
def dense(
    x,
    matrix,
    scales,
    out,
    rows,
    columns,
    SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x M^T [n, rows] in float32 of x [n, columns] and a stored matrix [rows, columns].

    The matrix is of integers or floating-point numbers, its rows times `scales`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    input = tl.program_id(1).to(tl.int64) * columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < columns
        value = tl.load(x + input + column, mask=inside, other=0).to(tl.float32)
        here = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(matrix + at, mask=here, other=0).to(tl.float32) * value[None, :]
    result = tl.sum(total, 1)
    if SCALES:
        result *= tl.load(scales + row, mask=row < rows, other=0).to(tl.float32)
    tl.store(out + tl.program_id(1).to(tl.int64) * rows + row, result, mask=row < rows)


@triton.jit
def finish(
    parts,
    row_factors,
    factors,
    residual,
    gains,
    out,
    rows,
    inputs,
    spans,
    ROW_FACTORS: tl.constexpr,
    FACTORS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """gains * (factors * H (row_factors * sum of parts) + residual), into out [inputs, rows].

    Args:
        parts: [spans, inputs, rows], sums over spans of columns.
        row_factors, factors, gains: [rows].
        residual: float32 [inputs, rows].
    """
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = row < rows
    here = tl.program_id(1).to(tl.int64) * rows + row
    values = tl.load(parts + here, mask=inside, other=0).to(tl.float32)
    for span in range(1, spans):
        part = tl.cast(inputs, tl.int64) * rows * span
        more = tl.load(parts + part + here, mask=inside, other=0)
        values += more.to(tl.float32)
    if ROW_FACTORS:
        values *= tl.load(row_factors + row, mask=inside, other=0)
    values = _mixed(values, SIZE, BLOCK, STEPS)
    if FACTORS:
        values *= tl.load(factors + row, mask=inside, other=0)
    if RESIDUAL:
        values += tl.load(residual + here, mask=inside, other=0)
    if GAINS:
        values *= tl.load(gains + row, mask=inside, other=0).to(tl.float32)
    tl.store(out + here, values.to(out.dtype.element_ty), mask=inside)
