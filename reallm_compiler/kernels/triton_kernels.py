"""Triton kernels on packed codes: products with few inputs, and panels of weights.

A line is a row of the grid of codes. Its codes come in groups of 16, which fill a fixed number of
bits: widths are `LOW` bits, and one more for `HIGH` of the 16 codes, evenly spread. A code's value
is looked up by a window of `STATE` bits that ends with it; without a trellis the window is the code
itself. A thread takes a group: it loads the 32-bit words that the group lies in, shifts them once
so that the first window begins at bit 0, and then all windows lie at bits that are known when the
kernel is compiled.

Inputs lie in blocks of `GROUPS` groups, [blocks, 16, inputs, GROUPS] by `[slot, group]` for code
16 group + slot: the threads of a warp, which hold consecutive groups, load consecutive numbers, at
distances that are known. Behind the last column there are zeros.

Sums are float32, in an order that depends on shapes alone. Where an `if` tests a name in capitals,
the kernel is compiled for one of its sides.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def _first_bit(slot, low, high):
    """Where the window of a slot begins in a group whose first window begins at bit 0."""
    return low * slot + high * (slot + 1) // 16


@triton.jit
def _word(codes, word, live, words):
    """The words of a stream at the places that are `live` and inside of it; 0 elsewhere."""
    inside = live & (word >= 0) & (word < words)
    return tl.load(codes + word, mask=inside, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _joined(low, high, shift):
    """32 bits from bit `shift` (0 to 31) of two words on."""
    both = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return (both >> shift).to(tl.uint32)


@triton.jit
def _window(low, high, OFFSET: tl.constexpr, STATE: tl.constexpr):
    """The bits [OFFSET, OFFSET + STATE) of two words, int32; OFFSET is below 32."""
    bits = low >> OFFSET
    if OFFSET + STATE > 32:
        bits = bits | (high << (32 - OFFSET))
    return (bits & ((1 << STATE) - 1)).to(tl.int32)


@triton.jit
def _entry(table, window, COMPUTED: tl.constexpr, MULTIPLIER: tl.constexpr):
    """What is looked up for a window: a number, or the bytes of a codeword in one int32.

    A computed entry is the sum of the four bytes of window x MULTIPLIER, less its mean.
    """
    if COMPUTED:
        product = window.to(tl.uint32) * MULTIPLIER
        pairs = (product & 0x00FF00FF) + ((product >> 8) & 0x00FF00FF)
        entry = ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.int32).to(tl.float32) - 510.0
    else:
        entry = tl.load(table + window)
    return entry


@triton.jit
def _value(entry, INDEX: tl.constexpr, DIM: tl.constexpr):
    """Element INDEX of a codeword, float32.

    Bytes hold 128 more than the integer that is meant. A byte in the low bits of 2^23 is that
    number plus the byte, without a conversion, of which GPUs do few.
    """
    if DIM == 1:
        value = entry.to(tl.float32)
    else:
        byte = (entry >> (8 * INDEX)) & 0xFF
        value = (byte | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    return value


@triton.jit
def _open(
    codes,
    line,
    group,
    live,
    words,
    line_bits,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STATE: tl.constexpr,
):
    """Where groups [lines, groups] begin, and their first two words, as `_next` goes on."""
    begin = line.to(tl.int64) * line_bits + (LOW - STATE)
    at = (begin & 31).to(tl.int32)[:, None] + (group * (16 * LOW + HIGH))[None, :]
    word = (begin >> 5)[:, None] + (at >> 5)
    shift = (at & 31).to(tl.uint64)
    raw = _word(codes, word + 1, live, words)
    low = _joined(_word(codes, word, live, words), raw, shift)
    if STATE > LOW:  # before a line there are zeros
        low = tl.where((group == 0)[None, :], low & (0x100000000 - (1 << (STATE - LOW))), low)
    high = low
    if _first_bit(15, LOW, HIGH) + STATE > 32:
        next = _word(codes, word + 2, live, words)
        high = _joined(raw, next, shift)
        raw = next
    return word, shift, raw, low, high


@triton.jit
def _next(
    codes,
    word,
    shift,
    raw,
    low,
    high,
    live,
    words,
    SLOT: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STATE: tl.constexpr,
):
    """The words for the window of a slot from those of the slot before it."""
    if SLOT > 0 and _first_bit(SLOT, LOW, HIGH) // 32 > _first_bit(SLOT - 1, LOW, HIGH) // 32:
        low = high
        if _first_bit(15, LOW, HIGH) + STATE > _first_bit(SLOT, LOW, HIGH) // 32 * 32 + 32:
            next = _word(codes, word + (_first_bit(SLOT, LOW, HIGH) // 32 + 2), live, words)
            high = _joined(raw, next, shift)
            raw = next
    return raw, low, high


@triton.jit
def _scale(scales, supers, offset, index, live, SUPER: tl.constexpr, LEVELS: tl.constexpr):
    """Scales or zero points at `index`, float32: numbers, or codes of one byte (SUPER above 0).

    Of codes SUPER share a super-scale: offset + code x super-scale / LEVELS.
    """
    values = tl.load(scales + index, mask=live, other=0).to(tl.float32)
    if SUPER > 0:
        step = tl.load(supers + index // SUPER, mask=live, other=0).to(tl.float32) / LEVELS
        values = tl.load(offset) + values * step
    return values


@triton.jit
def product(
    x,
    codes,
    table,
    scales,
    scales_super,
    scales_offset,
    zeros,
    zeros_super,
    zeros_offset,
    out,
    unit,
    rows,
    lines,
    groups,
    words,
    line_bits,
    lines_per_order,
    runs,
    span,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STATE: tl.constexpr,
    DIM: tl.constexpr,
    COMPUTED: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    RUN: tl.constexpr,
    SCALE_SUPER: tl.constexpr,
    SCALE_LEVELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ZERO_SUPER: tl.constexpr,
    ZERO_LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    INPUTS: tl.constexpr,
    LINES: tl.constexpr,
):
    """Sums over spans of columns, out [spans, chunks, INPUTS, rows], of arranged inputs x
    [chunks, orders, blocks, 16, INPUTS, GROUPS].

    A program takes LINES lines and `span` groups of each, GROUPS at a time. DIM rows lie in a line,
    as the elements of its codewords; an entry counts `unit`. RUN groups share a scale (and a zero
    point where ZEROS), and a row has `runs` of them; RUN is 0 for scales that act elsewhere.
    `lines_per_order` lines have the same order of columns.
    """
    first_line = tl.program_id(0) * LINES
    line = first_line + tl.arange(0, LINES)
    lane = tl.arange(0, GROUPS)
    blocks = (groups + GROUPS - 1) // GROUPS
    orders = (lines + lines_per_order - 1) // lines_per_order
    turn = tl.program_id(2) * orders + first_line // lines_per_order
    x += turn.to(tl.int64) * blocks * (16 * INPUTS * GROUPS)
    totals = (tl.zeros((LINES, GROUPS), tl.float32),) * (INPUTS * DIM)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, groups), GROUPS):
        group = start + lane
        live = (line < lines)[:, None] & (group < groups)[None, :]
        word, shift, raw, low, high = _open(
            codes, line, group, live, words, line_bits, LOW, HIGH, STATE
        )
        at = x + start * (16 * INPUTS) + lane
        # Sums within a run are scaled before they count.
        sums = (tl.zeros((LINES, GROUPS), tl.float32),) * (INPUTS * DIM) if RUN > 0 else totals
        inputs = (tl.zeros((GROUPS,), tl.float32),) * INPUTS
        for slot in tl.static_range(16):
            raw, low, high = _next(
                codes, word, shift, raw, low, high, live, words, slot, LOW, HIGH, STATE
            )
            window = _window(low, high, _first_bit(slot, LOW, HIGH) % 32, STATE)
            entry = _entry(table, window, COMPUTED, MULTIPLIER)
            fresh = ()
            seen = ()
            for index in tl.static_range(INPUTS):
                value = tl.load(at + (slot * INPUTS + index) * GROUPS)
                if ZEROS:
                    seen = seen + (inputs[index] + value,)
                for element in tl.static_range(DIM):
                    more = _value(entry, element, DIM) * value[None, :]
                    fresh = fresh + (sums[index * DIM + element] + more,)
            sums = fresh
            if ZEROS:
                inputs = seen
        if RUN > 0:
            fresh = ()
            for index in tl.static_range(INPUTS):
                for element in tl.static_range(DIM):
                    row = (line * DIM + element)[:, None]
                    run = row.to(tl.int64) * runs + (group // RUN)[None, :]
                    here = live & (row < rows)
                    scale = _scale(
                        scales, scales_super, scales_offset, run, here, SCALE_SUPER, SCALE_LEVELS
                    )
                    more = scale * unit * sums[index * DIM + element]
                    if ZEROS:
                        zero = _scale(
                            zeros, zeros_super, zeros_offset, run, here, ZERO_SUPER, ZERO_LEVELS
                        )
                        more += zero * inputs[index][None, :]
                    fresh = fresh + (totals[index * DIM + element] + more,)
            totals = fresh
        else:
            totals = sums
    for index in tl.static_range(INPUTS):
        for element in tl.static_range(DIM):
            row = line * DIM + element
            total = tl.sum(totals[index * DIM + element], 1)
            if RUN == 0:
                total *= unit
            turn = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)) * INPUTS + index
            tl.store(
                out + turn.to(tl.int64) * rows + row, total, mask=(line < lines) & (row < rows)
            )


@triton.jit
def panel(
    codes,
    table,
    scales,
    scales_super,
    scales_offset,
    zeros,
    zeros_super,
    zeros_offset,
    row_factors,
    column_factors,
    columns,
    out,
    unit,
    first_line,
    rows,
    lines,
    groups,
    words,
    line_bits,
    lines_per_order,
    runs,
    out_columns,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STATE: tl.constexpr,
    DIM: tl.constexpr,
    COMPUTED: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    RUN: tl.constexpr,
    SCALE_SUPER: tl.constexpr,
    SCALE_LEVELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ZERO_SUPER: tl.constexpr,
    ZERO_LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROW_FACTORS: tl.constexpr,
    COLUMN_FACTORS: tl.constexpr,
    SCATTER: tl.constexpr,
    LINES: tl.constexpr,
):
    """Weights of lines first_line, first_line + 1, ... into out [rows of these lines, out_columns].

    Columns lie as inputs do, or where `columns` [orders, blocks, 16, GROUPS] says (SCATTER; -1 for
    nowhere). Weights are multiplied by factors of their rows and of their places.
    """
    line = first_line + tl.program_id(0) * LINES + tl.arange(0, LINES)
    start = tl.program_id(1) * GROUPS
    lane = tl.arange(0, GROUPS)
    group = start + lane
    blocks = (groups + GROUPS - 1) // GROUPS
    order = (first_line + tl.program_id(0) * LINES) // lines_per_order
    columns += order.to(tl.int64) * blocks * (16 * GROUPS)
    live = (line < lines)[:, None] & (group < groups)[None, :]
    word, shift, raw, low, high = _open(
        codes, line, group, live, words, line_bits, LOW, HIGH, STATE
    )
    factors = ()
    shifts = ()
    for element in tl.static_range(DIM):
        row = (line * DIM + element)[:, None]
        here = live & (row < rows)
        factor = tl.full((LINES, GROUPS), 1.0, tl.float32) * unit
        zero = tl.zeros((LINES, GROUPS), tl.float32)
        if RUN > 0:
            run = row.to(tl.int64) * runs + (group // RUN)[None, :]
            factor *= _scale(
                scales, scales_super, scales_offset, run, here, SCALE_SUPER, SCALE_LEVELS
            )
            if ZEROS:
                zero = _scale(zeros, zeros_super, zeros_offset, run, here, ZERO_SUPER, ZERO_LEVELS)
        if ROW_FACTORS:
            own = tl.load(row_factors + row, mask=row < rows, other=0)
            factor *= own
            zero *= own
        factors = factors + (factor,)
        shifts = shifts + (zero,)
    for slot in tl.static_range(16):
        raw, low, high = _next(
            codes, word, shift, raw, low, high, live, words, slot, LOW, HIGH, STATE
        )
        window = _window(low, high, _first_bit(slot, LOW, HIGH) % 32, STATE)
        entry = _entry(table, window, COMPUTED, MULTIPLIER)
        place = start * 16 + slot * GROUPS + lane
        column = place
        if SCATTER:
            column = tl.load(columns + place).to(tl.int32)
        for element in tl.static_range(DIM):
            weight = _value(entry, element, DIM) * factors[element] + shifts[element]
            if COLUMN_FACTORS:
                weight *= tl.load(column_factors + place)[None, :]
            weight = tl.where(live, weight, 0.0)
            row = line * DIM + element
            to = (row - first_line * DIM).to(tl.int64)[:, None] * out_columns + column[None, :]
            kept = (row < rows)[:, None] & (column >= 0)[None, :]
            tl.store(out + to, weight.to(out.dtype.element_ty), mask=kept)
