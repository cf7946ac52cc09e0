"""Results of a product on their way out: y = g (factors (H y) + L1 (L2 x)).

Products of panels come without what belongs to rows: y = row_scales S + row_shifts X.

L1 and L2 are read as they are stored, in float16 or int8 or wider; what int8 numbers count is
multiplied into the few numbers between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.kernels.form import LANES
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_numbers import (
    F16,
    SIZES,
    hadamard,
    load_numbers,
    narrowed,
    product_sum,
    store_numbers,
    sum_lanes,
)

TOGETHER = 4
"""Rows of L1 or L2 that are multiplied side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What is done to results.

    Attributes:
        dtype: the type of what comes out: `f32`, `bf16` or `f16`.
        factors: they are multiplied by factors after the Hadamard matrices.
        block: of Hadamard matrices that they are multiplied by.
        low_rank: the stored type of L1 and L2; None without.
        low_rank_scales: columns of L1 and rows of L2 have scales.
        gain: rows are multiplied by gains.
        exact: the results of two sets of integers are added up first.
        products: the type of products with a panel, which scales of rows come to first; None for
            float32 results.
        shifted: shifts of rows come to them too, times the sums of inputs at `scales`.
    """

    dtype: str
    factors: bool
    block: int
    low_rank: str | None
    low_rank_scales: bool
    gain: bool
    exact: bool
    products: str | None = None
    shifted: bool = False


def write_finish(text: Text, outputs: Outputs) -> None:
    """The functions `inner(job)`, which is L2 x of all tokens, and `finish(job)`."""
    with text.function("inner"):
        if outputs.low_rank is not None:
            with text.loop(0, text.slot("tokens")) as token:
                _inner(text, outputs, token.index)
    with text.function("finish"), text.loop(0, text.slot("tokens")) as token:
        _finish(text, outputs, token.index)


def _products(text: Text, dtype: str, matrix: str, row: str, count: str, vector: str) -> list[str]:
    """The sums of `TOGETHER` rows of a matrix [rows, count], times a float32 vector."""
    starts = []
    for number in range(TOGETHER):
        place = text.let(f"add i64 {row}, {number}")
        starts.append(text.let(f"mul i64 {place}, {count}"))
    with text.loop(0, count, LANES, carried=[(F16, "zeroinitializer")] * TOGETHER) as turn:
        values = load_numbers(text, "f32", vector, turn.index)
        turn.next = []
        for start, total in zip(starts, turn.values, strict=True):
            place = text.let(f"add i64 {start}, {turn.index}")
            numbers = load_numbers(text, dtype, matrix, place)
            turn.next.append(product_sum(text, total, numbers, values))
    return [sum_lanes(text, total) for total in turn.values]


def _inner(text: Text, outputs: Outputs, token: str) -> None:
    assert outputs.low_rank is not None
    rank, columns = text.slot("rank"), text.slot("columns")
    start = text.let(f"mul i64 {token}, {columns}")
    x = text.at(text.pointer("kept"), start, "float")
    start = text.let(f"mul i64 {token}, {rank}")
    inner = text.at(text.pointer("inner"), start, "float")
    right, scales = text.pointer("l2"), text.pointer("rank_scales")
    with text.loop(0, rank, TOGETHER) as row:
        found = _products(text, outputs.low_rank, right, row.index, columns, x)
        for number, value in enumerate(found):
            place = text.let(f"add i64 {row.index}, {number}")
            if outputs.low_rank_scales:
                scale = text.load("float", scales, place, "float")
                value = text.let(f"fmul float {value}, {scale}")
            text.store("float", value, inner, place, "float")


def _finish(text: Text, outputs: Outputs, token: str) -> None:
    rows = text.slot("rows")
    stride = text.slot("y_stride")
    each = text.let(f"mul i64 {stride}, {2 if outputs.exact else 1}")
    start = text.let(f"mul i64 {token}, {each}")
    if outputs.products is not None:
        y = _scaled(text, outputs, token, start)
    else:
        y = text.at(text.pointer("y"), start, "float")
    if outputs.exact:
        second = text.at(y, stride, "float")
        with text.loop(0, stride, LANES) as turn:
            found, more = (load_numbers(text, "f32", one, turn.index) for one in (y, second))
            total = text.let(f"fadd {F16} {found}, {more}")
            store_numbers(text, "f32", total, y, turn.index)
    hadamard(text, y, text.slot("rows_up"), outputs.block)
    if outputs.low_rank is not None:
        _add_low_rank(text, outputs, token, y)
    start = text.let(f"mul i64 {token}, {rows}")
    out = text.at(text.pointer("out"), text.let(f"mul i64 {start}, {SIZES[outputs.dtype]}"))
    factors, gain = text.pointer("out_factors"), text.pointer("gain")

    def value(index: str) -> tuple[str, str]:
        found = load_numbers(text, "f32", y, index)
        if outputs.factors and outputs.low_rank is None:
            factor = load_numbers(text, "f32", factors, index)
            found = text.let(f"fmul {F16} {found}, {factor}")
        if outputs.gain:
            factor = load_numbers(text, "f32", gain, index)
            found = text.let(f"fmul {F16} {found}, {factor}")
        return narrowed(text, outputs.dtype, found)

    whole = text.let(f"and i64 {rows}, -{LANES}")
    with text.loop(0, whole, LANES) as turn:
        kind, narrow = value(turn.index)
        text.store(kind, narrow, out, turn.index, _element(kind))
    with text.when(text.let(f"icmp slt i64 {whole}, {rows}")):
        kind, narrow = value(whole)
        rest = text.let(f"sub i64 {rows}, {whole}")
        with text.loop(0, rest) as lane:
            one = text.let(f"extractelement {kind} {narrow}, i64 {lane.index}")
            place = text.let(f"add i64 {whole}, {lane.index}")
            text.store(_element(kind), one, out, place, _element(kind))


def _scaled(text: Text, outputs: Outputs, token: str, start: str) -> str:
    """Where the results of a token lie in float32, whose products begin at an element."""
    assert outputs.products is not None
    products, found = text.pointer("y"), text.pointer("mixed")
    scales, shifts = text.pointer("row_scales"), text.pointer("row_shifts")
    ones = ""
    if outputs.shifted:
        one = text.load("float", text.pointer("scales"), token, "float")
        ones = text.spread("float", LANES, one)
    with text.loop(0, text.slot("y_stride"), LANES) as turn:
        place = text.let(f"add i64 {start}, {turn.index}")
        value = load_numbers(text, outputs.products, products, place)
        scale = load_numbers(text, "f32", scales, turn.index)
        value = text.let(f"fmul {F16} {value}, {scale}")
        if ones:
            shift = load_numbers(text, "f32", shifts, turn.index)
            value = product_sum(text, value, shift, ones)
        store_numbers(text, "f32", value, found, turn.index)
    return found


def _add_low_rank(text: Text, outputs: Outputs, token: str, y: str) -> None:
    """y = factors y + L1 inner."""
    assert outputs.low_rank is not None
    rank, rows = text.slot("rank"), text.slot("rows")
    start = text.let(f"mul i64 {token}, {rank}")
    inner = text.at(text.pointer("inner"), start, "float")
    factors, left = text.pointer("out_factors"), text.pointer("l1")
    whole = text.let(f"and i64 {rows}, -{TOGETHER}")

    def put(row: str, numbers: list[str]) -> None:
        for number, added in enumerate(numbers):
            place = text.let(f"add i64 {row}, {number}")
            value = text.load("float", y, place, "float")
            if outputs.factors:
                factor = text.load("float", factors, place, "float")
                value = text.let(f"fmul float {value}, {factor}")
            text.store("float", text.let(f"fadd float {value}, {added}"), y, place, "float")

    with text.loop(0, whole, TOGETHER) as row:
        put(row.index, _products(text, outputs.low_rank, left, row.index, rank, inner))
    with text.loop(whole, rows) as row:
        start = text.let(f"mul i64 {row.index}, {rank}")
        with text.loop(0, rank, LANES, carried=[(F16, "zeroinitializer")]) as turn:
            place = text.let(f"add i64 {start}, {turn.index}")
            numbers = load_numbers(text, outputs.low_rank, left, place)
            values = load_numbers(text, "f32", inner, turn.index)
            turn.next = [product_sum(text, turn.values[0], numbers, values)]
        put(row.index, [sum_lanes(text, turn.values[0])])


def _element(kind: str) -> str:
    return kind.split(" x ")[1].rstrip(">")
