"""The product of lines of codes and the activations of some tokens: y = s_x (s S + z X).

S is the exact sum of entries times integers of activations, X the sum of these integers, s_x what
one of them counts, s the scale of a row with the unit of its entries, z its shift. With scales of
blocks s and z differ along the row: S and X are sums of a block, and their terms are added up in
float32 in one fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reallm_compiler.kernels.form import STEP, Form
from reallm_compiler.kernels.llvm_text import Text


class Target(Protocol):
    """Writes the parts of a product that know the processor; `begin` and `line` come first."""

    bias: int

    def begin(self) -> None:
        """What all lines have in common."""

    def line(self, base: str) -> None:
        """A line of codes begins at `base`."""

    def token(self, token: str) -> None:
        """The activations of a token, an index of 64 bits, will be asked for."""

    def sums(self) -> list[tuple[str, str]]:
        """(type, start) of the partial sums of one row and token."""

    def entries(self, period: str, step: int) -> list[list[list[str]]]:
        """Entries of 64 codes: [dimension][plane][pieces]."""

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Partial sums with the products of 64 entries and activations."""

    def total(self, sums: Sequence[str]) -> str:
        """The sum i64, with `bias` times the sum of the activations too much."""


def write_row_sums(text: Text, form: Form, target: Target, tokens: int) -> None:
    """The function `sums<tokens>(job, first line, last line, first token)` without blocks."""
    rows, streams = form.line_rows, form.streams
    with text.function(f"sums{tokens}", "i64 %first", "i64 %last", "i64 %from"):
        target.begin()
        names = [text.let(f"add i64 %from, {token}") for token in range(tokens)]
        for name in names:
            target.token(name)
        lines = _Lines(text)
        stream = text.slot("line_codes")  # inputs of a stream, padded
        scales, shifts = text.pointer("row_scales"), text.pointer("row_shifts")
        with text.loop("%first", "%last") as line:
            target.line(lines.base(line.index))
            kinds = target.sums()
            count = len(kinds)
            with text.loop(0, lines.periods, carried=kinds * (tokens * rows)) as period:
                totals = [
                    period.values[n : n + count] for n in range(0, tokens * rows * count, count)
                ]
                first = text.let(f"mul i64 {period.index}, {form.period}")
                for step in range(form.period // STEP):
                    entries = target.entries(period.index, step)
                    column = text.let(f"add i64 {first}, {STEP * step}")
                    for part in range(streams):
                        for number, token in enumerate(names):
                            for row in range(rows):
                                index = number * rows + row
                                totals[index] = target.add(
                                    totals[index], entries[row + part], token, column
                                )
                        column = text.let(f"add i64 {column}, {stream}")
                period.next = [one for total in totals for one in total]
            for number, token in enumerate(names):
                unit = text.load("float", text.pointer("scales"), token, "float")
                ones = text.load("i64", text.pointer("totals"), token, "i64")
                more = text.let(f"mul i64 {ones}, {target.bias}")
                for row in range(rows):
                    index = number * rows + row
                    total = target.total(period.values[index * count : (index + 1) * count])
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
                    value = text.let(f"fmul float {value}, {unit}")
                    lines.put(value, token, place)


class _Lines:
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
