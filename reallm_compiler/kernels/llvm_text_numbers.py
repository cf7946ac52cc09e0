"""Vectors of 16 float32: numbers of other types, sums in a fixed order, Hadamard matrices.

All is plain LLVM, which knows no processor: it makes of 16 lanes as many registers as there must
be. No sum is reordered, so results are the same on all processors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reallm_compiler.kernels.form import LANES, STEP
from reallm_compiler.kernels.llvm_text import Text, constants, number

F16 = "<16 x float>"
I16 = "<16 x i32>"

SIZES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1}
"""Bytes of a number."""

EVENS = (*range(0, STEP, 2), *range(1, STEP, 2))
"""Of each 64 numbers the even ones first."""

UNROLLED = 128
"""Numbers that are mixed in registers."""


def same(value: float) -> str:
    """A constant of 16 equal lanes."""
    return constants("float", [number(value)] * LANES)


def load_numbers(text: Text, dtype: str, pointer: str, index: str | int, count: int = LANES) -> str:
    """Numbers of a type at an element, as float32."""
    floats = f"<{count} x float>"
    if dtype == "f32":
        return text.load(floats, pointer, index, "float")
    if dtype == "f16":
        halves = text.load(f"<{count} x half>", pointer, index, "half")
        return text.let(f"fpext <{count} x half> {halves} to {floats}")
    if dtype == "i8":
        small = text.load(f"<{count} x i8>", pointer, index)
        return text.let(f"sitofp <{count} x i8> {small} to {floats}")
    short = text.load(f"<{count} x i16>", pointer, index, "i16")
    wide = text.let(f"zext <{count} x i16> {short} to <{count} x i32>")
    bits = text.let(f"shl <{count} x i32> {wide}, {constants('i32', [16] * count)}")
    return text.let(f"bitcast <{count} x i32> {bits} to {floats}")


def unpacked(text: Text, data: str, bits: int, count: int) -> str:
    """<count x i8>: codes that lie one after the other in <count bits / 8 x i8>."""
    size, starts = count * bits // 8, [bits * code for code in range(count)]
    pairs = [min(start // 8 + half, size) for start in starts for half in (0, 1)]
    words = f"<{count} x i16>"
    both = text.shuffle("i8", size, data, pairs, "zeroinitializer")
    value = text.let(f"bitcast <{2 * count} x i8> {both} to {words}")
    shifts = constants("i16", [start % 8 for start in starts])
    value = text.let(f"lshr {words} {value}, {shifts}")
    value = text.let(f"and {words} {value}, {constants('i16', [(1 << bits) - 1] * count)}")
    return text.let(f"trunc {words} {value} to <{count} x i8>")


def joined(text: Text, kind: str, pieces: Sequence[str]) -> str:
    """Vectors of 16 as one; a power of two of them."""
    found, count = list(pieces), LANES
    while len(found) > 1:
        both = zip(found[::2], found[1::2], strict=True)
        found = [text.shuffle(kind, count, a, list(range(2 * count)), b) for a, b in both]
        count *= 2
    return found[0]


def store_numbers(text: Text, dtype: str, value: str, pointer: str, index: str | int) -> None:
    """Writes 16 float32 as numbers of a type, rounded to the nearest."""
    kind, narrow = narrowed(text, dtype, value)
    text.store(kind, narrow, pointer, index, kind.split(" x ")[1].rstrip(">"))


def store_pair(
    text: Text, dtype: str, pair: Sequence[str], pointer: str, index: str, *, exact: bool
) -> None:
    """Writes 32 float32 as numbers of a type, rounded to the nearest.

    Args:
        text: where it is written.
        dtype: the type.
        pair, pointer, index: what and where.
        exact: the type holds the values, so that nothing needs to be rounded.
    """
    if dtype == "bf16":
        both = [_highest(text, value, exact=exact) for value in pair]
        halves = [text.let(f"bitcast {I16} {one} to <32 x i16>") for one in both]
        high = text.shuffle("i16", 2 * LANES, halves[0], list(range(1, 4 * LANES, 2)), halves[1])
        text.store("<32 x i16>", high, pointer, index, "i16")
        return
    for part, value in enumerate(pair):
        place = text.let(f"add i64 {index}, {LANES * part}")
        store_numbers(text, dtype, value, pointer, place)


def narrowed(text: Text, dtype: str, value: str) -> tuple[str, str]:
    """(type, value) of 16 float32 as numbers of a type, rounded to the nearest."""
    if dtype == "f32":
        return F16, value
    if dtype == "f16":
        return "<16 x half>", text.let(f"fptrunc {F16} {value} to <16 x half>")
    bits = _highest(text, value)
    high = text.let(f"lshr {I16} {bits}, {constants('i32', [16] * LANES)}")
    return "<16 x i16>", text.let(f"trunc {I16} {high} to <16 x i16>")


def _highest(text: Text, value: str, *, exact: bool = False) -> str:
    """<16 x i32> whose high halves are 16 float32 as bfloat16, rounded unless they are exact."""
    bits = text.let(f"bitcast {F16} {value} to {I16}")
    if exact:
        return bits
    odd = text.let(f"lshr {I16} {bits}, {constants('i32', [16] * LANES)}")
    odd = text.let(f"and {I16} {odd}, {constants('i32', [1] * LANES)}")
    up = text.let(f"add {I16} {bits}, {constants('i32', [0x7FFF] * LANES)}")
    up = text.let(f"add {I16} {up}, {odd}")
    nan = text.let(f"fcmp uno {F16} {value}, {value}")
    return text.let(
        f"select <16 x i1> {nan}, {I16} {constants('i32', [0x7FC00000] * LANES)}, {I16} {up}"
    )


def sum_lanes(text: Text, value: str, count: int = LANES) -> str:
    """The sum of the lanes: halves are added to each other until one is left."""

    def add(kind: str, low: str, high: str) -> str:
        return text.let(f"fadd {kind} {low}, {high}")

    return _folded(text, value, count, add)


def most_lane(text: Text, value: str) -> str:
    """The largest of 16 lanes, none of which is NaN."""

    def larger(kind: str, low: str, high: str) -> str:
        more = text.let(f"fcmp ogt {kind} {low}, {high}")
        bits = kind.replace("float", "i1")
        return text.let(f"select {bits} {more}, {kind} {low}, {kind} {high}")

    return _folded(text, value, LANES, larger)


def _folded(text: Text, value: str, count: int, both: Callable[[str, str, str], str]) -> str:
    while count > 1:
        half = count // 2
        low = text.shuffle("float", count, value, list(range(half)))
        high = text.shuffle("float", count, value, list(range(half, count)))
        value = both(f"<{half} x float>", low, high)
        count = half
    return text.let(f"extractelement <1 x float> {value}, i64 0")


def product_sum(text: Text, total: str, a: str, b: str) -> str:
    """total + a b, of 16 lanes, rounded once."""
    return text.call(F16, "llvm.fma.v16f32", f"{F16} {a}", f"{F16} {b}", f"{F16} {total}")


def hadamard(text: Text, pointer: str, count: str, block: int) -> None:
    """Numbers in memory times orthogonal Hadamard matrices of blocks, in their place.

    Args:
        text: where it is written.
        pointer: float32 [count].
        count: how many, a multiple of the block and of 16.
        block: a power of two; 1 for nothing.
    """
    if block == 1:
        return
    stride = UNROLLED
    while stride < block:  # pairs so far apart are mixed through memory
        with text.loop(0, count, 2 * stride) as base:
            end = text.let(f"add i64 {base.index}, {stride}")
            with text.loop(base.index, end, LANES) as turn:
                other = text.let(f"add i64 {turn.index}, {stride}")
                a = load_numbers(text, "f32", pointer, turn.index)
                b = load_numbers(text, "f32", pointer, other)
                store_numbers(text, "f32", text.let(f"fadd {F16} {a}, {b}"), pointer, turn.index)
                store_numbers(text, "f32", text.let(f"fsub {F16} {a}, {b}"), pointer, other)
        stride *= 2
    size = max(LANES, min(block, UNROLLED))
    with text.loop(0, count, size) as turn:
        places = [text.let(f"add i64 {turn.index}, {n}") for n in range(0, size, LANES)]
        values = [load_numbers(text, "f32", pointer, place) for place in places]
        step = 1
        while step < len(values):
            for first in range(len(values)):
                if not first & step:
                    a, b = values[first], values[first | step]
                    values[first] = text.let(f"fadd {F16} {a}, {b}")
                    values[first | step] = text.let(f"fsub {F16} {a}, {b}")
            step *= 2
        step = 1
        while step < min(block, LANES):
            signs = constants("float", [number(-1.0 if n & step else 1.0) for n in range(LANES)])
            swapped = [n ^ step for n in range(LANES)]
            for index, value in enumerate(values):
                other = text.shuffle("float", LANES, value, swapped)
                values[index] = product_sum(text, other, value, signs)
            step *= 2
        for place, value in zip(places, values, strict=True):
            scaled = text.let(f"fmul {F16} {value}, {same(1 / math.sqrt(block))}")
            store_numbers(text, "f32", scaled, pointer, place)
