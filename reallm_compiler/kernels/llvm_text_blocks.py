"""The product of lines of codes whose blocks of columns have scales, and perhaps zero points.

    y = s_x sum over blocks of (unit s S + (shift s + z) X)

S and X are exact sums of a block. The scales of a row are decoded first, into memory that stays in
cache. Terms are added up in 16 lanes of float32, in an order that depends on the form alone.
"""

from __future__ import annotations

from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text, constants, number
from reallm_compiler.kernels.llvm_text_numbers import (
    F16,
    load_numbers,
    product_sum,
    sum_lanes,
    unpacked,
)
from reallm_compiler.kernels.llvm_text_product import Lines, Steps, begin_sums, grouped
from reallm_compiler.storage.windows import NumberArray

SCALES = ("block_scales", "block_supers", "block_offset")
ZEROS = ("block_zeros", "zero_supers", "zero_offset")
"""Slots of the arrays."""

UNROLLED = 4
"""Steps of a block that are written one after the other; more are a loop."""


def write_block_sums(text: Text, form: Form, target: Steps, tokens: int) -> None:
    """The function `sums<tokens>(job, first line, last line, first token)` with blocks."""
    with text.function(f"sums{tokens}", "i64 %first", "i64 %last", "i64 %from"):
        names = begin_sums(text, target, tokens)
        lines = Lines(text)
        blocks = Blocks(text, form, lines.periods)
        with text.loop("%first", "%last") as line:
            target.line(lines.base(line.index))
            blocks.decode(line.index)
            totals = _line(text, form, target, names, blocks)
            first = text.let(f"mul i64 {line.index}, {form.line_rows}")
            for number in range(form.line_rows):
                row = text.let(f"add i64 {first}, {number}")
                scale = text.load("float", text.pointer("row_scales"), row, "float")
                for name, found in zip(names, totals, strict=True):
                    value = sum_lanes(text, blocks.shifted(found[number], name, number))
                    unit = text.load("float", text.pointer("scales"), name, "float")
                    value = text.let(f"fmul float {value}, {scale}")
                    lines.put(text.let(f"fmul float {value}, {unit}"), name, row)


def _line(
    text: Text, form: Form, target: Steps, names: list[str], blocks: Blocks
) -> list[list[str]]:
    """Sums <16 x float> of unit s S over the blocks of a line, for each token and row."""
    assert form.blocks is not None
    steps, kinds = max(1, form.blocks.block // STEP), target.sums()

    def add(step: str, sums: list[list[str]]) -> list[list[str]]:
        entries = target.entries(step, 0)
        column = text.let(f"mul i64 {step}, {STEP}")
        pairs = zip(names, sums, strict=True)
        return [target.add(one, entries, name, column) for name, one in pairs]

    count = text.let(f"udiv i64 {text.slot('periods')}, {steps}")
    carried = [(F16, "zeroinitializer")] * (len(names) * form.line_rows)
    with text.loop(0, count, carried=carried) as turn:
        first = text.let(f"mul i64 {turn.index}, {steps}")
        sums = [[start for _, start in kinds] for _ in names]
        if steps <= UNROLLED:
            for step in range(steps):
                sums = add(text.let(f"add i64 {first}, {step}"), sums)
        else:
            last = text.let(f"add i64 {first}, {steps}")
            with text.loop(first, last, carried=kinds * len(names)) as step_:
                given = grouped(step_.values, len(kinds))
                step_.next = [one for own in add(step_.index, given) for one in own]
            sums = grouped(step_.values, len(kinds))
        scales = [blocks.scales(turn.index, row) for row in range(form.line_rows)]
        found = [lanes for own in sums for lanes in target.lanes(own)]
        turn.next = [
            product_sum(text, total, lanes, scale)
            for total, lanes, scale in zip(turn.values, found, scales * len(names), strict=True)
        ]
    return grouped(turn.values, form.line_rows)


def _together(array: NumberArray, lanes: int) -> bool:
    """Whether so many numbers of an array, from a multiple of them on, can be decoded at once: they
    are whole bytes, and have one super-scale.
    """
    if lanes == 1 or array.bits is None:
        return True
    return array.superblock % lanes == 0 and lanes * array.bits % 8 == 0


class Blocks:
    """Scales of the blocks of the rows of a line, decoded: unit s, and shift s + z."""

    def __init__(self, text: Text, form: Form, periods: str) -> None:
        arrays = form.blocks
        assert arrays is not None
        self._text = text
        self._arrays = arrays
        self._given = [one for one in (arrays.scales, arrays.zeros) if one is not None]
        self._count = text.slot("row_blocks")
        # The last step may reach beyond the last block, to where inputs are zeros.
        most = text.let(f"mul i64 {periods}, {max(1, STEP // arrays.block)}")
        most = text.call("i64", "llvm.smax.i64", f"i64 {most}", f"i64 {self._count}")
        most = text.let(f"add i64 {most}, {LANES}")
        self._rows: list[tuple[str, str]] = []
        for _ in range(form.line_rows):
            places = [text.let(f"alloca float, i64 {most}, align 64") for _ in range(2)]
            self._rows.append((places[0], places[1]))
        with text.loop(0, most) as turn:
            for place in (place for places in self._rows for place in places):
                text.store("float", "0.0", place, turn.index, "float")
        numbers = text.pointer("numbers")
        self._unit = text.load("float", numbers)
        self._shift = text.load("float", numbers, 1, "float")
        up = text.let(f"add i64 {self._count}, {LANES - 1}")
        self._up = text.let(f"and i64 {up}, -{LANES}")

    def decode(self, line: str) -> None:
        """Scales and shifts of a line."""
        text = self._text
        if len(self._rows) == 1:
            self._decode(line, *self._rows[0])
            return
        last = text.let(f"sub i64 {text.slot('rows')}, 1")  # of which more are no rows
        first = text.let(f"mul i64 {line}, {len(self._rows)}")
        for index, places in enumerate(self._rows):
            row = text.let(f"add i64 {first}, {index}")
            self._decode(text.call("i64", "llvm.smin.i64", f"i64 {row}", f"i64 {last}"), *places)

    def _decode(self, row: str, scales: str, shifts: str) -> None:
        """Those of a row, 16 or 4 or 1 at a time."""
        text, count = self._text, self._count
        start = text.let(f"mul i64 {row}, {count}")
        done = "0"
        for lanes in (LANES, 4, 1):
            rest = text.let(f"urem i64 {count}, {lanes}")
            whole = text.let(f"icmp eq i64 {rest}, 0")
            until = text.let(f"select i1 {whole}, i64 {count}, i64 {done}")
            if not all(_together(array, lanes) for array in self._given):
                continue
            with text.loop(done, until, lanes) as turn:
                group = text.let(f"add i64 {start}, {turn.index}")
                scale, shift = self._group(group, lanes)
                text.store(f"<{lanes} x float>", scale, scales, turn.index, "float")
                text.store(f"<{lanes} x float>", shift, shifts, turn.index, "float")
            done = until

    def _group(self, group: str, lanes: int) -> tuple[str, str]:
        text, kind = self._text, f"<{lanes} x float>"
        arrays = self._arrays
        scale = self._numbers(SCALES, arrays.scales, group, lanes)
        unit, shift = (text.spread("float", lanes, one) for one in (self._unit, self._shift))
        counted = text.let(f"fmul {kind} {scale}, {unit}")
        zeros = arrays.zeros and self._numbers(ZEROS, arrays.zeros, group, lanes)
        if arrays.zeros is not None and arrays.zeros.integers:
            shift = text.let(f"fsub {kind} {shift}, {zeros}")
        value = text.let(f"fmul {kind} {scale}, {shift}")
        if arrays.zeros is not None and not arrays.zeros.integers:
            value = text.let(f"fadd {kind} {value}, {zeros}")
        return counted, value

    def _numbers(
        self, slots: tuple[str, str, str], array: NumberArray, group: str, lanes: int
    ) -> str:
        """Decoded scales, or zero points, of groups; as `codecs.scales` does it."""
        text, dtype, kind = self._text, self._arrays.dtype, f"<{lanes} x float>"
        values, supers, offset = (text.pointer(slot) for slot in slots)
        if array.bits is None:
            return load_numbers(text, dtype, values, group, lanes)
        codes = self._codes(values, array.bits, group, lanes)
        codes = text.let(f"uitofp <{lanes} x i8> {codes} to {kind}")
        if array.integers:
            return codes
        home = text.let(f"udiv i64 {group}, {array.superblock}")
        top = load_numbers(text, dtype, supers, home, 1)
        levels = constants("float", [number(float(2**array.bits - 1))])
        step = text.let(f"fdiv <1 x float> {top}, {levels}")
        if self._arrays.offset == "matrix":
            least = load_numbers(text, "f32", offset, 0, 1)
        else:
            least = load_numbers(text, dtype, offset, home, 1)
        step, least = (text.shuffle("float", 1, one, [0] * lanes) for one in (step, least))
        value = text.let(f"fmul {kind} {codes}, {step}")
        return text.let(f"fadd {kind} {value}, {least}")

    def _codes(self, values: str, bits: int, group: str, lanes: int) -> str:
        """<lanes x i8>: codes from that of a group on; see `_together`."""
        text = self._text
        first = text.let(f"mul i64 {group}, {bits}")
        byte = text.let(f"lshr i64 {first}, 3")
        if lanes > 1:
            size = lanes * bits // 8
            return unpacked(text, text.load(f"<{size} x i8>", values, byte), bits, lanes)
        last = text.let(f"add i64 {first}, {bits - 1}")
        last = text.let(f"lshr i64 {last}, 3")
        low, high = (
            text.let(f"zext i8 {text.load('i8', values, place)} to i64") for place in (byte, last)
        )
        high = text.let(f"shl i64 {high}, 8")
        by = text.let(f"and i64 {first}, 7")
        code = text.let(f"or i64 {low}, {high}")
        code = text.let(f"lshr i64 {code}, {by}")
        code = text.let(f"and i64 {code}, {(1 << bits) - 1}")
        code = text.let(f"trunc i64 {code} to i8")
        return text.let(f"insertelement <1 x i8> poison, i8 {code}, i64 0")

    def scales(self, index: str, row: int) -> str:
        """<16 x float>: unit s of the lanes of a block, or of the blocks of a step."""
        text, block = self._text, self._arrays.block
        scales, _ = self._rows[row]
        if block >= STEP:
            one = text.load("float", scales, index, "float")
            return text.spread("float", LANES, one)
        each = STEP // block
        first = text.let(f"mul i64 {index}, {each}")
        some = text.load(f"<{each} x float>", scales, first, "float")
        return text.shuffle("float", each, some, [lane * each // LANES for lane in range(LANES)])

    def of(self, column: str, row: int) -> tuple[str, str]:
        """unit s, and shift s + z, as <16 x float>, of 16 columns of one block."""
        text = self._text
        block = text.let(f"udiv i64 {column}, {self._arrays.block}")
        scale, shift = (
            text.spread("float", LANES, text.load("float", place, block, "float"))
            for place in self._rows[row]
        )
        return scale, shift

    def shifted(self, total: str, token: str, row: int) -> str:
        """Sums of a token with the terms (shift s + z) X."""
        text = self._text
        start = text.let(f"mul i64 {token}, {self._up}")
        sums = text.at(text.pointer("block_sums"), start, "float")
        with text.loop(0, self._up, LANES, carried=[(F16, total)]) as turn:
            shifts = load_numbers(text, "f32", self._rows[row][1], turn.index)
            ones = load_numbers(text, "f32", sums, turn.index)
            turn.next = [product_sum(text, turn.values[0], shifts, ones)]
        return turn.values[0]
