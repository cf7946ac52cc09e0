"""Orders of columns that hold for groups of rows: integers of activations, put in order for each.

The integers lie in the columns' own order first. Whoever multiplies lines of a group moves them to
memory of its own, which lies in cache, and works on a copy of the job that points there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reallm_compiler.codecs.windows import LOW
from reallm_compiler.kernels.form import LANES, Form
from reallm_compiler.kernels.llvm_text import SLOTS, Text, constants
from reallm_compiler.kernels.llvm_text_numbers import I16


@contextmanager
def each_group(text: Text, form: Form, planes: bool) -> Iterator[tuple[str, str, str]]:
    """The body for the lines of each group: (first line, last line, job).

    Args:
        text: where it is written, in a function of `%first` and `%last`.
        form: of the codes, with orders.
        planes: whether integers are two planes of int8, else they are int16.
    """
    size = text.slot("group_lines")
    job = text.let(f"alloca [{len(SLOTS)} x i64], align 64")
    _copy(text, job, "%job", str(8 * len(SLOTS)))
    tokens, stride = text.slot("integers"), text.slot("plane_stride")
    each = text.let(f"mul i64 {tokens}, {stride}")
    kind = "i8" if planes else "i16"
    for name in ("high", "low") if planes else ("high",):
        _point(text, job, name, text.let(f"alloca {kind}, i64 {each}, align 64"))
    if form.blocks is not None:
        count = text.let(f"mul i64 {tokens}, {_sums_stride(text)}")
        _point(text, job, "block_sums", text.let(f"alloca float, i64 {count}, align 64"))
    begin = text.let(f"udiv i64 %first, {size}")
    end = text.let(f"add i64 %last, {size}")
    end = text.let(f"sub i64 {end}, 1")
    end = text.let(f"udiv i64 {end}, {size}")
    with text.loop(begin, end) as group:
        _put_in_order(text, form, job, group.index, kind)
        low = text.let(f"mul i64 {group.index}, {size}")
        high = text.let(f"add i64 {low}, {size}")
        low = text.call("i64", "llvm.smax.i64", f"i64 {low}", "i64 %first")
        high = text.call("i64", "llvm.smin.i64", f"i64 {high}", "i64 %last")
        yield low, high, job


def _copy(text: Text, to: str, start: str, size: str) -> None:
    arguments = (f"ptr {to}", f"ptr {start}", f"i64 {size}", "i1 false")
    text.call("void", "llvm.memcpy.p0.p0.i64", *arguments)


def _point(text: Text, job: str, name: str, address: str) -> None:
    text.store("ptr", address, job, SLOTS.index(name), "i64")


def _own(text: Text, job: str, name: str) -> str:
    return text.load("ptr", job, SLOTS.index(name), "i64")


def _sums_stride(text: Text) -> str:
    """Numbers from the sums of a token's blocks to those of the next."""
    up = text.let(f"add i64 {text.slot('row_blocks')}, {LANES - 1}")
    return text.let(f"and i64 {up}, -{LANES}")


def _put_in_order(text: Text, form: Form, job: str, group: str, kind: str) -> None:
    """The integers of all tokens in the order of a group, and the sums of their blocks."""
    stride = text.slot("plane_stride")
    orders = text.at(text.pointer("group_orders"), text.let(f"mul i64 {group}, {stride}"), "i16")
    names = ("high", "low") if kind == "i8" else ("high",)
    with text.loop(0, text.slot("integers")) as token:
        start = text.let(f"mul i64 {token.index}, {stride}")
        pairs = []
        for name in names:
            source, target = text.pointer(name), _own(text, job, name)
            pairs.append((text.at(source, start, kind), text.at(target, start, kind)))
        with text.loop(0, stride, LANES) as turn:
            homes = []
            for lane in range(LANES):
                place = text.let(f"add i64 {turn.index}, {lane}")
                homes.append(text.let(f"zext i16 {text.load('i16', orders, place, 'i16')} to i64"))
            for source, target in pairs:
                vector, value = f"<{LANES} x {kind}>", "poison"
                for lane, home in enumerate(homes):
                    one = text.load(kind, source, home, kind)
                    value = text.let(f"insertelement {vector} {value}, {kind} {one}, i64 {lane}")
                text.store(vector, value, target, turn.index, kind)
        if form.blocks is not None:
            _add_up(text, form, [target for _, target in pairs], job, token.index, kind)


def _add_up(text: Text, form: Form, places: list[str], job: str, token: str, kind: str) -> None:
    """The sums of a token's integers over blocks."""
    assert form.blocks is not None
    each, count = _sums_stride(text), text.slot("row_blocks")
    sums = text.at(_own(text, job, "block_sums"), text.let(f"mul i64 {token}, {each}"), "float")
    with text.loop(count, each) as block:
        text.store("float", "0.0", sums, block.index, "float")
    with text.loop(0, count) as block:
        first = text.let(f"mul i64 {block.index}, {form.blocks.block}")
        last = text.let(f"add i64 {first}, {form.blocks.block}")
        with text.loop(first, last, LANES, carried=[(I16, "zeroinitializer")]) as turn:
            total = turn.values[0]
            for number, place in enumerate(places):
                some = text.load(f"<{LANES} x {kind}>", place, turn.index, kind)
                some = text.let(f"sext <{LANES} x {kind}> {some} to {I16}")
                if number + 1 < len(places):
                    some = text.let(f"mul {I16} {some}, {constants('i32', [LOW] * LANES)}")
                total = text.let(f"add {I16} {total}, {some}")
            turn.next = [total]
        total = text.call("i32", "llvm.vector.reduce.add.v16i32", f"{I16} {turn.values[0]}")
        text.store("float", text.let(f"sitofp i32 {total} to float"), sums, block.index, "float")
