"""Codes that stand for eight columns each, looked up in tables in memory (`llvm_text_looked`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_looked import Looked
from reallm_compiler.kernels.llvm_text_numbers import F16
from reallm_compiler.kernels.llvm_text_product import grouped, prefetch
from reallm_compiler.kernels.llvm_text_wide import W16, Machine

AHEAD = 1024
"""Bytes from the codes of a period to those that are prefetched beside tables in the second cache:
look-ups there keep the processor from seeing that codes come in a row."""

CACHE_LINE = 64

FIRST_CACHE = 4096
"""Entries of eight bytes in the first cache."""


class Vectors(Looked):
    """A code is looked up once for the eight columns that it stands for, beside each other."""

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether this kernel does the form."""
        return form.together and form.codes.planes == 1 and STEP % form.codes.books == 0

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor:
        """int8 [books x 2^window, 8]."""
        assert values.table is not None
        return values.table[0]

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        super().__init__(text, form, machine)
        self.most_steps = 16  # 32 / books vectors each: 16 x 16 x (2 x 127 x 32384) < 2^31

    def sums(self) -> list[tuple[str, str]]:
        """Two vectors, which take turns."""
        return [("<4 x i32>", "zeroinitializer")] * 2

    def entries(self, period: str, step: int) -> list[list[str]]:
        """<8 x i16> for eight columns."""
        text, codes = self.text, self.form.codes
        self.at_period(period)
        if step == 0 and codes.books << codes.window > FIRST_CACHE:
            for byte in range(AHEAD, AHEAD + self.period_bytes, CACHE_LINE):
                prefetch(text, self._place, byte)
        found = []
        for first in range(STEP * step, STEP * (step + 1), codes.books):
            total = ""
            for book in range(codes.books):
                end = self.form.bits(first + book + 1)
                index = self.window(end - codes.window, codes.window)
                index = text.let(f"add i64 {index}, {book << codes.window}")
                small = text.load("<8 x i8>", self.table, index, "<8 x i8>")
                wide = text.let(f"sext <8 x i8> {small} to <8 x i16>")
                total = text.let(f"add <8 x i16> {total}, {wide}") if total else wide
            found.append(total)
        return [found]

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Eight columns a time."""
        text, found = self.text, list(sums)
        column = text.let(f"mul i64 {column}, {self.form.spread}")
        for number, vector in enumerate(entries[0]):
            start = text.let(f"add i64 {column}, {8 * number}")
            inputs = self.inputs(token, start, "<8 x i16>")
            found[number % 2] = self.multiplied(found[number % 2], vector, inputs, 8)
        return found

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """Two vectors of eight to one of 16."""
        text, pieces = self.text, []
        for low, high in grouped(entries[0], 2):
            both = text.shuffle("i16", 8, low, list(range(LANES)), high)
            pieces.append(text.let(f"sitofp {W16} {both} to {F16}"))
        return [pieces]

    def totals(self, sums: Sequence[str]) -> list[str]:
        """All lanes."""
        text = self.text
        wide = [text.let(f"sext <4 x i32> {part} to <4 x i64>") for part in sums]
        both = text.let(f"add <4 x i64> {wide[0]}, {wide[1]}")
        return [text.call("i64", "llvm.vector.reduce.add.v4i64", f"<4 x i64> {both}")]
