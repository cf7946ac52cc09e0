"""The product of lines of codes and the activations of some tokens: y = s_x (s S + z X).

S is the exact sum of entries times integers of activations, X the sum of these integers, s_x what
one of them counts, s the scale of a row with the unit of its entries, z its shift. With scales of
blocks s and z differ along the row: S and X are sums of a block, and their terms are added up in
float32 in one fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from reallm_compiler.kernels.form import STEP, Form
from reallm_compiler.kernels.llvm_text import Text

Value = TypeVar("Value")

FRONT = 8
"""Bytes before a line that windows may begin in."""

PAGE = 4096

PAGES_AHEAD = 2 * PAGE
"""Bytes from a line to the pages that are prefetched: the page walk takes longer than the loads."""


class Steps(Protocol):
    """Writes the parts of a product that know the processor; `begin` and `line` come first.

    Attributes:
        most_steps: after so many steps of `STEP` codes partial sums may be full; None for never.
    """

    bias: int
    most_steps: int | None

    def begin(self) -> None:
        """What all lines have in common."""

    def line(self, base: str) -> None:
        """A line of codes begins at `base`."""

    def carried(self) -> list[tuple[str, str]]:
        """(type, value at its start) of what a line's periods hand on."""

    def turn(self, values: Sequence[str]) -> list[str]:
        """A period begins with these; those of the next."""

    def token(self, token: str) -> None:
        """The activations of a token, an index of 64 bits, will be asked for."""

    def sums(self) -> list[tuple[str, str]]:
        """(type, start) of the partial sums of one token and all rows of a line."""

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Entries of the 64 codes of a step, as `add` takes them."""

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Partial sums with the products of 64 codes' entries and a token's activations."""

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """The entries of the 64 codes of a step in four <16 x float>, for each dimension; with the
        bias in forms with blocks, as their sums have it.
        """

    def lanes(self, sums: Sequence[str]) -> list[str]:
        """The sums of a block as <16 x float>, for each row of a line; lane n holds those of codes
        4n to 4n + 3 of each step, where blocks are shorter than a step.
        """

    def totals(self, sums: Sequence[str]) -> list[str]:
        """i64 for each row of a line, with `bias` times the sum of the activations too much."""


def begin_sums(text: Text, target: Steps, tokens: int) -> list[str]:
    """What functions `sums<tokens>` begin with; the tokens, %from and those after it."""
    target.begin()
    names = [text.let(f"add i64 %from, {token}") for token in range(tokens)]
    for name in names:
        target.token(name)
    return names


def write_row_sums(text: Text, form: Form, target: Steps, tokens: int) -> None:
    """The function `sums<tokens>(job, first line, last line, first token)` without blocks."""
    rows = form.line_rows
    with text.function(f"sums{tokens}", "i64 %first", "i64 %last", "i64 %from"):
        names = begin_sums(text, target, tokens)
        lines = Lines(text)
        scales, shifts = text.pointer("row_scales"), text.pointer("row_shifts")
        with text.loop("%first", "%last") as line:
            target.line(lines.base(line.index))
            found = _line(text, form, target, names, lines.periods)
            for name, totals in zip(names, found, strict=True):
                unit = text.load("float", text.pointer("scales"), name, "float")
                ones = text.load("i64", text.pointer("totals"), name, "i64")
                more = text.let(f"mul i64 {ones}, {target.bias}")
                for row, total in enumerate(totals):
                    exact = text.let(f"sub i64 {total}, {more}")
                    place = text.let(f"mul i64 {line.index}, {rows}")
                    place = text.let(f"add i64 {place}, {row}")
                    scale = text.load("float", scales, place, "float")
                    shift = text.load("float", shifts, place, "float")
                    value = text.let(f"sitofp i64 {exact} to float")
                    value = text.let(f"fmul float {value}, {scale}")
                    other = text.let(f"sitofp i64 {ones} to float")
                    other = text.let(f"fmul float {other}, {shift}")
                    value = text.let(f"fadd float {value}, {other}")
                    lines.put(text.let(f"fmul float {value}, {unit}"), name, place)


def _line(text: Text, form: Form, target: Steps, names: list[str], periods: str) -> list[list[str]]:
    """The exact sums i64 of each token and each row of a line."""
    if target.most_steps is None:
        return _stretch(text, form, target, names, "0", periods)
    most = target.most_steps * STEP // form.period
    count = len(names) * form.line_rows
    with text.loop(0, periods, most, carried=[("i64", "0")] * count) as turn:
        last = text.let(f"add i64 {turn.index}, {most}")
        last = text.call("i64", "llvm.smin.i64", f"i64 {last}", f"i64 {periods}")
        found = _stretch(text, form, target, names, turn.index, last)
        every = [total for totals in found for total in totals]
        turn.next = [
            text.let(f"add i64 {total}, {more}")
            for total, more in zip(turn.values, every, strict=True)
        ]
    return grouped(turn.values, form.line_rows)


def _stretch(
    text: Text, form: Form, target: Steps, names: list[str], first: str, last: str
) -> list[list[str]]:
    """The exact sums of some periods."""
    kinds, own = target.sums(), target.carried()
    sums = [start for _, start in kinds * len(names)]
    if own:
        # The first period by itself: what changes after it is then not moved in each turn.
        carried = [*own, *kinds * len(names)]
        with text.loop(0, 2, carried=carried) as part:
            following = target.turn(part.values[: len(own)])
            begin = text.let(f"add i64 {first}, {part.index}")
            alone = text.let(f"icmp eq i64 {part.index}, 0")
            second = text.let(f"add i64 {first}, 1")
            end = text.let(f"select i1 {alone}, i64 {second}, i64 {last}")
            sums = part.values[len(own) :]
            part.next = [*following, *_periods(text, form, target, names, begin, end, sums)]
        sums = part.values[len(own) :]
    else:
        sums = _periods(text, form, target, names, first, last, sums)
    return [target.totals(some) for some in grouped(sums, len(kinds))]


def _periods(
    text: Text,
    form: Form,
    target: Steps,
    names: list[str],
    first: str,
    last: str,
    sums: list[str],
) -> list[str]:
    """The partial sums of all tokens with those of some periods."""
    kinds = target.sums()
    types = [kind for kind, _ in kinds * len(names)]
    with text.loop(first, last, carried=list(zip(types, sums, strict=True))) as period:
        found = grouped(period.values, len(kinds))
        start = text.let(f"mul i64 {period.index}, {form.period}")
        for step in range(form.period // STEP):
            entries = target.entries(period.index, step)
            column = text.let(f"add i64 {start}, {STEP * step}")
            pairs = zip(names, found, strict=True)
            found = [target.add(own, entries, name, column) for name, own in pairs]
        period.next = [one for own in found for one in own]
    return period.values


def grouped(values: Sequence[Value], size: int) -> list[list[Value]]:
    """Values in groups of a size."""
    return [list(values[first : first + size]) for first in range(0, len(values), size)]


def prefetch(text: Text, base: str, ahead: int, size: str | None = None) -> None:
    """Prefetches what lies some bytes ahead of an address, or at each page of `size` bytes there.

    Into the first cache: a prefetch into the second one takes longer than to look bytes up there.
    """

    def one(place: str) -> None:
        text.call("void", "llvm.prefetch.p0", f"ptr {place}", "i32 0", "i32 3", "i32 1")

    if size is None:
        one(text.at(base, ahead))
        return
    with text.loop(ahead, text.let(f"add i64 {size}, {ahead}"), PAGE) as turn:
        one(text.at(base, turn.index))


class Lines:
    """Addresses that the lines of a product have in common."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._codes = text.pointer("codes")
        self._bytes = text.slot("line_bytes")
        self.periods = text.slot("periods")
        self._y = text.pointer("y")
        self._stride = text.slot("y_stride")

    def base(self, line: str) -> str:
        """Where a line of codes begins."""
        offset = self._text.let(f"mul i64 {line}, {self._bytes}")
        return self._text.at(self._codes, offset)

    def put(self, value: str, token: str, row: str) -> None:
        """Writes a result."""
        place = self._text.let(f"mul i64 {token}, {self._stride}")
        place = self._text.let(f"add i64 {place}, {row}")
        self._text.store("float", value, self._y, place, "float")


class Ends:
    """Lines of codes that steps may read beyond the ends of: where nothing is known to lie there,
    the line is copied to memory of its own, with zeros before and behind it.

    Args:
        text: where it is written.
        period: bytes of a period.
        behind: bytes that a step may read behind a line's last period.
    """

    def __init__(self, text: Text, period: int, behind: int) -> None:
        self._text = text
        codes, self.size = text.pointer("codes"), text.slot("line_bytes")
        every = text.let(f"mul i64 {text.slot('lines')}, {self.size}")
        reach = text.let(f"mul i64 {text.slot('periods')}, {period}")
        reach = text.call("i64", "llvm.smax.i64", f"i64 {reach}", f"i64 {self.size}")
        reach = text.let(f"add i64 {reach}, {behind}")
        size = text.let(f"add i64 {reach}, {FRONT}")
        memory = text.let(f"alloca i8, i64 {size}, align 64")
        text.call("void", "llvm.memset.p0.i64", f"ptr {memory}", "i8 0", f"i64 {size}", "i1 false")
        self._copied = text.at(memory, FRONT)
        self._least = text.at(codes, FRONT)
        self._most = text.at(text.at(codes, every), text.let(f"sub i64 0, {reach}"))

    def line(self, base: str) -> str:
        """Where the line lies that begins at `base`, or its copy."""
        text = self._text
        early = text.let(f"icmp ult ptr {base}, {self._least}")
        late = text.let(f"icmp ugt ptr {base}, {self._most}")
        end = text.let(f"or i1 {early}, {late}")
        with text.when(end):
            arguments = (f"ptr {self._copied}", f"ptr {base}", f"i64 {self.size}", "i1 false")
            text.call("void", "llvm.memcpy.p0.p0.i64", *arguments)
        return text.let(f"select i1 {end}, ptr {self._copied}, ptr {base}")
