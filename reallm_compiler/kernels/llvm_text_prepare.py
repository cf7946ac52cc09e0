"""Activations on their way to a product, in one pass over each token.

Factors and Hadamard matrices of the inputs, the order in which columns are coded, and integers in
two planes. `planes.integers` is the same in torch. Integers of 16 bits hold activations of 16 bits;
those of float32 have a second set of integers for what the first one leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reallm_compiler.codecs.windows import LARGEST, LOW
from reallm_compiler.kernels.form import LANES, STEP
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_numbers import (
    EVENS,
    F16,
    I16,
    hadamard,
    joined,
    load_numbers,
    most_lane,
    same,
    store_numbers,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What is done to inputs.

    Attributes:
        dtype: their type: `f32`, `bf16` or `f16`.
        factors: they are multiplied by factors.
        block: of Hadamard matrices that they are multiplied by.
        ordered: columns are coded in another order.
        order_factors: in that order they are multiplied by factors again.
        planes: integers are written as two planes of int8, else as int16.
        evens: of each 64 integers the even ones come first, which is how codes of 4 bits lie in
            bytes.
        sums: weights of a block whose integers are added up; 0 for none.
        kept: float32 values of the inputs as they came are kept for the low-rank part.
        exact: what rounding to integers leaves of a token is a token of its own beside it.
    """

    dtype: str
    factors: bool
    block: int
    ordered: bool
    order_factors: bool
    planes: bool
    evens: bool
    sums: int
    kept: bool
    exact: bool


def write_prepare(text: Text, inputs: Inputs) -> None:
    """The functions `mix(job, token)`, whose result lies at `ordered`, and `prepare(job)`."""
    with text.function("mix", "i64 %token"):
        _mix(text, inputs)
    with text.function("prepare"), text.loop(0, text.slot("tokens")) as token:
        text.do(f"call void @mix(ptr %job, i64 {token.index})")
        _integers(text, inputs, token.index)


def _mix(text: Text, inputs: Inputs) -> None:
    columns = text.slot("columns")
    start = text.let(f"mul i64 %token, {columns}")
    x, mixed, factors = text.pointer("x"), text.pointer("mixed"), text.pointer("in_factors")
    kept = text.pointer("kept")
    with text.loop(0, columns, LANES) as turn:
        value = load_numbers(text, inputs.dtype, x, text.let(f"add i64 {start}, {turn.index}"))
        if inputs.kept:
            store_numbers(text, "f32", value, kept, text.let(f"add i64 {start}, {turn.index}"))
        if inputs.factors:
            factor = load_numbers(text, "f32", factors, turn.index)
            value = text.let(f"fmul {F16} {value}, {factor}")
        store_numbers(text, "f32", value, mixed, turn.index)
    hadamard(text, mixed, columns, inputs.block)
    stride = text.slot("plane_stride")
    if not inputs.ordered:
        with text.loop(columns, stride, LANES) as turn:
            store_numbers(text, "f32", "zeroinitializer", mixed, turn.index)
        return
    # Columns that only fill up a step are those after the last one: a zero.
    text.store("float", "0.0", mixed, columns, "float")
    order, ordered = text.pointer("order"), text.pointer("ordered")
    factors = text.pointer("order_factors")
    with text.loop(0, stride, LANES) as turn:
        value = "poison"
        for lane in range(LANES):
            place = text.let(f"add i64 {turn.index}, {lane}")
            column = text.load("i32", order, place, "i32")
            column = text.let(f"zext i32 {column} to i64")
            one = text.load("float", mixed, column, "float")
            value = text.let(f"insertelement {F16} {value}, float {one}, i64 {lane}")
        if inputs.order_factors:
            factor = load_numbers(text, "f32", factors, turn.index)
            value = text.let(f"fmul {F16} {value}, {factor}")
        store_numbers(text, "f32", value, ordered, turn.index)


def _integers(text: Text, inputs: Inputs, token: str) -> None:
    """Integers of the mixed inputs of a token, their sums, and what one of them counts."""
    stride = text.slot("plane_stride")
    values = text.pointer("ordered" if inputs.ordered else "mixed")
    with text.loop(0, stride, LANES, carried=[(F16, "zeroinitializer")] * 2) as turn:
        value = load_numbers(text, "f32", values, turn.index)
        size = text.call(F16, "llvm.fabs.v16f32", f"{F16} {value}")
        more = text.let(f"fcmp ogt {F16} {size}, {turn.values[0]}")
        most = text.let(f"select <16 x i1> {more}, {F16} {size}, {F16} {turn.values[0]}")
        # What is not finite has no zero of its own.
        nothing = text.let(f"fmul {F16} {value}, zeroinitializer")
        turn.next = [most, text.let(f"fadd {F16} {turn.values[1]}, {nothing}")]
    most = most_lane(text, turn.values[0])
    spoilt = text.let(f"fcmp uno {F16} {turn.values[1]}, zeroinitializer")
    spoilt = text.call("i1", "llvm.vector.reduce.or.v16i1", f"<16 x i1> {spoilt}")
    some = text.let(f"fcmp ogt float {most}, 0.0")
    factor = text.let(f"fdiv float {float(LARGEST):e}, {most}")
    factor = text.let(f"select i1 {some}, float {factor}, float 0.0")
    scale = text.let(f"fdiv float {most}, {float(LARGEST):e}")
    scale = text.let(f"select i1 {spoilt}, float 0x7FF8000000000000, float {scale}")
    factors = text.spread("float", LANES, factor)

    def scaled(index: str) -> str:
        value = load_numbers(text, "f32", values, index)
        return text.let(f"fmul {F16} {value}, {factors}")

    def inside(value: str) -> str:
        # All integers are; what is not finite must become one, whichever, and its scale spoils it.
        value = text.call(F16, "llvm.rint.v16f32", f"{F16} {value}")
        for compared, end in (("ogt", -LARGEST), ("olt", LARGEST)):
            within = text.let(f"fcmp {compared} {F16} {value}, {same(end)}")
            value = text.let(f"select <16 x i1> {within}, {F16} {value}, {F16} {same(end)}")
        return value

    def rounded(index: str) -> str:
        return inside(scaled(index))

    def left(index: str) -> str:
        value = scaled(index)
        whole = text.call(F16, "llvm.rint.v16f32", f"{F16} {value}")
        rest = text.let(f"fsub {F16} {value}, {whole}")
        return inside(text.let(f"fmul {F16} {rest}, {same(2 * LARGEST)}"))

    if not inputs.exact:
        _write_integers(text, inputs, token, scale, rounded)
        return
    first = text.let(f"mul i64 {token}, 2")
    _write_integers(text, inputs, first, scale, rounded)
    small = text.let(f"fdiv float {scale}, {float(2 * LARGEST):e}")
    _write_integers(text, inputs, text.let(f"add i64 {first}, 1"), small, left)


def _write_integers(
    text: Text, inputs: Inputs, place: str, scale: str, rounded: Callable[[str], str]
) -> None:
    """A set of integers, what one of them counts, and their sums.

    Args:
        text: where it is written.
        inputs: what is done to inputs.
        place: of the set among all.
        scale: what an integer counts.
        rounded: integers as <16 x float>, from an element on.
    """
    stride = text.slot("plane_stride")
    text.store("float", scale, text.pointer("scales"), place, "float")
    start = text.let(f"mul i64 {place}, {stride}")
    high, low = text.pointer("high"), text.pointer("low")

    def whole(value: str) -> str:
        return text.let(f"fptosi {F16} {value} to {I16}")

    kind = "i8" if inputs.planes else "i16"
    step = STEP if inputs.evens else LANES
    with text.loop(0, stride, step, carried=[(I16, "zeroinitializer")]) as turn:
        at, total = text.let(f"add i64 {start}, {turn.index}"), turn.values[0]
        found: list[list[str]] = []
        for first in range(0, step, LANES):
            value = rounded(text.let(f"add i64 {turn.index}, {first}"))
            parts = [value]
            if inputs.planes:
                top = text.let(f"fmul {F16} {value}, {same(1 / LOW)}")
                top = text.call(F16, "llvm.rint.v16f32", f"{F16} {top}")
                rest = text.let(f"fmul {F16} {top}, {same(LOW)}")
                parts = [top, text.let(f"fsub {F16} {value}, {rest}")]
            narrow = f"<{LANES} x {kind}>"
            found.append([text.let(f"trunc {I16} {whole(one)} to {narrow}") for one in parts])
            total = text.let(f"add {I16} {total}, {whole(value)}")
        for pointer, pieces in zip((high, low), zip(*found, strict=True), strict=False):
            integers = joined(text, kind, pieces)
            if inputs.evens:
                integers = text.shuffle(kind, STEP, integers, EVENS)
            text.store(f"<{step} x {kind}>", integers, pointer, at, kind)
        turn.next = [total]
    total = text.call("i32", "llvm.vector.reduce.add.v16i32", f"{I16} {turn.values[0]}")
    total = text.let(f"sext i32 {total} to i64")
    text.store("i64", total, text.pointer("totals"), place, "i64")
    if not inputs.sums:
        return
    count = text.slot("row_blocks")
    up = text.let(f"add i64 {count}, {LANES - 1}")
    up = text.let(f"and i64 {up}, -{LANES}")
    sums = text.at(text.pointer("block_sums"), text.let(f"mul i64 {place}, {up}"), "float")
    with text.loop(count, up) as block:
        text.store("float", "0.0", sums, block.index, "float")
    with text.loop(0, count) as block:
        begin = text.let(f"mul i64 {block.index}, {inputs.sums}")
        end = text.let(f"add i64 {begin}, {inputs.sums}")
        with text.loop(begin, end, LANES, carried=[(I16, "zeroinitializer")]) as turn:
            turn.next = [text.let(f"add {I16} {turn.values[0]}, {whole(rounded(turn.index))}")]
        total = text.call("i32", "llvm.vector.reduce.add.v16i32", f"{I16} {turn.values[0]}")
        wide = text.let(f"sitofp i32 {total} to float")
        text.store("float", wide, sums, block.index, "float")
