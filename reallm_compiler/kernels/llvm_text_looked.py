"""Codes that are looked up in tables in memory (`llvm_text_wide`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from reallm_compiler.codecs.quantizers.trellis_table import COMPUTED_MEAN, MULTIPLIER
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text, constants
from reallm_compiler.kernels.llvm_text_numbers import F16, I16
from reallm_compiler.kernels.llvm_text_product import grouped
from reallm_compiler.kernels.llvm_text_wide import W16, Machine, Wide


class Looked(Wide):
    """What reads windows one by one: words of the line, and indices from them."""

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        super().__init__(text, form, machine)
        self._word, self._word_start = "", 0
        self._place = self._begins = ""

    def at_period(self, period: str) -> None:
        """Windows of this period will be asked for."""
        self._place = self.place(period)
        self._begins = self.text.let(f"icmp eq i64 {period}, 0")
        self._word = ""

    def word(self, kind: str, first: int) -> str:
        """Bytes of the line from one of the period on; those before the line are zeros."""
        text, word = self.text, self.text.load(kind, self._place, first)
        if first >= 0:
            return word
        inside = text.let(f"select i1 {self._begins}, {kind} {-1 << -8 * first}, {kind} -1")
        return text.let(f"and {kind} {word}, {inside}")

    def window(self, start: int, bits: int) -> str:
        """An index i64: bits of the line from a bit of the period on, which never goes back."""
        text, first = self.text, start // 8
        if not self._word or start + bits > 8 * self._word_start + 64:
            self._word = self.word("i64", first)
            self._word_start = first
        by = start - 8 * self._word_start
        if self.machine.extract and bits != 8 and by + bits < 64:  # others are one instruction
            control = by + (bits << 8)
            return text.call("i64", self.machine.extract, f"i64 {self._word}", f"i64 {control}")
        value = text.let(f"lshr i64 {self._word}, {by}") if by else self._word
        return text.let(f"and i64 {value}, {(1 << bits) - 1}")


class Pairs(Looked):
    """Two windows of one table at once: an entry of the wide table is two of int8."""

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether this kernel does the form."""
        codes = form.codes
        most = codes.window + max(codes.widths)
        return codes.planes == codes.dim == 1 and not codes.identity and most <= 14

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor:
        """int8 [windows of pairs, 2], for each width of the second code."""
        assert values.table is not None
        table, bits = values.table[0, :, 0], form.codes.window
        found = []
        for width in sorted(set(form.codes.widths)):
            both = torch.arange(1 << bits + width)
            found.append(torch.stack([table[both % (1 << bits)], table[both >> width]], dim=1))
        return torch.cat(found)

    def entries(self, period: str, step: int) -> list[list[str]]:
        """32 pairs."""
        text, codes = self.text, self.form.codes
        self.at_period(period)
        found = []
        for first in range(STEP * step, STEP * (step + 1), LANES):
            vector = "poison"
            for code in range(first, first + LANES, 2):
                width = codes.widths[(code + 1) % len(codes.widths)]
                bits = codes.window + width
                index = self.window(self.form.bits(code + 2) - bits, bits)
                place = text.let(f"add i64 {index}, {pair_start(self.form, width)}")
                entry = text.load("i16", self.table, place, "i16")
                lane = (code - first) // 2
                vector = text.let(f"insertelement <8 x i16> {vector}, i16 {entry}, i64 {lane}")
            small = text.let(f"bitcast <8 x i16> {vector} to <16 x i8>")
            found.append(text.let(f"sext <16 x i8> {small} to {W16}"))
        return [found]


def pair_start(form: Form, width: int) -> int:
    """Where the table of pairs begins whose second code has a width."""
    smaller = {other for other in form.codes.widths if other < width}
    return sum(1 << form.codes.window + other for other in smaller)


class Computed(Looked):
    """Entries are sums of the bytes of products (`trellis_table.computed_entries`), 16 at once."""

    WORD = 32

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether they are."""
        return form.codes.computed

    @staticmethod
    def tables(form: Form, values: WindowValues) -> None:
        """None."""
        return

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        super().__init__(text, replace(form, codes=replace(form.codes, planes=1)), machine)
        self.most_steps = 32  # of two pieces each: 32 x 2 x (2 x 510 x 32384) < 2^31

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Four vectors of 16."""
        self.at_period(period)
        codes = range(STEP * step, STEP * (step + 1), LANES)
        return [[self._computed(self._states(first)) for first in codes]]

    def _states(self, first: int) -> str:
        """<16 x i32>: the windows of 16 codes."""
        text, window = self.text, self.form.codes.window
        starts = [self.form.bits(code + 1) - window for code in range(first, first + LANES)]
        each = LANES  # as many as are sure to lie in one word
        while each > 1 and any(
            own[-1] + window - own[0] // 8 * 8 > self.WORD
            for own in (starts[lane : lane + each] for lane in range(0, LANES, each))
        ):
            each //= 2
        homes = [starts[lane // each * each] // 8 for lane in range(LANES)]
        vector = "poison"
        for lane in range(0, LANES, each):
            word = self.word("i32", homes[lane])
            vector = text.let(f"insertelement {I16} {vector}, i32 {word}, i64 {lane}")
        spread = [lane // each * each for lane in range(LANES)]
        vector = text.shuffle("i32", LANES, vector, spread)
        shifts = [start - 8 * home for start, home in zip(starts, homes, strict=True)]
        vector = text.let(f"lshr {I16} {vector}, {constants('i32', shifts)}")
        return text.let(f"and {I16} {vector}, {_all((1 << window) - 1)}")

    def _computed(self, states: str) -> str:
        """<16 x i16>: bytes are added up in pairs, and then the pairs."""
        text = self.text
        product = text.let(f"mul {I16} {states}, {_all(MULTIPLIER)}")
        high = text.let(f"lshr {I16} {product}, {_all(8)}")
        low, high = (text.let(f"and {I16} {one}, {_all(0x00FF00FF)}") for one in (product, high))
        pairs = text.let(f"add {I16} {low}, {high}")
        other = text.let(f"lshr {I16} {pairs}, {_all(16)}")
        total = text.let(f"add {I16} {pairs}, {other}")
        total = text.let(f"trunc {I16} {total} to {W16}")
        mean = constants("i16", [COMPUTED_MEAN] * LANES)
        return text.let(f"sub {W16} {total}, {mean}")


def _all(value: int) -> str:
    return constants("i32", [value] * LANES)


class Rows(Looked):
    """A code stands for two or four rows: its entries of 16 bits, beside those of the next."""

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether this kernel does the form."""
        codes = form.codes
        return codes.planes == 1 and codes.dim in (2, 4) and codes.axis == "rows"

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor:
        """int16 [2^window, dim]."""
        assert values.table is not None
        return values.table[0].to(torch.int16)

    @property
    def _columns(self) -> int:
        """Columns of a vector of eight entries."""
        return 8 // self.form.codes.dim

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        super().__init__(text, form, machine)
        self.most_steps = 16  # of 16 vectors each: 16 x 16 x (2 x 127 x 32384) < 2^31
        self._pairs = cache(self._pairs_at)

    def sums(self) -> list[tuple[str, str]]:
        """Two vectors, in which each row has its lanes."""
        return [("<4 x i32>", "zeroinitializer")] * 2

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Names of vectors, which `_pairs` writes when they are first asked for: there are more of
        them than registers.
        """
        self.at_period(period)
        self._pairs = cache(self._pairs_at)
        return [[str(code) for code in range(STEP * step, STEP * (step + 1), self._columns)]]

    def _pairs_at(self, name: str) -> str:
        """<8 x i16>: for a pair of columns the pairs of all rows, one after the other."""
        text, codes, first = self.text, self.form.codes, int(name)
        kind, parts = f"<{codes.dim} x i16>", []
        for code in range(first, first + self._columns):
            index = self.window(self.form.bits(code + 1) - codes.window, codes.window)
            parts.append(text.load(kind, self.table, index, kind))
        while len(parts) > 2:  # pairs of columns beside pairs
            size = codes.dim
            parts = [
                text.shuffle("i16", size, a, list(range(2 * size)), b)
                for a, b in ((parts[0], parts[2]), (parts[1], parts[3]))
            ]
        order = [lane for n in range(4) for lane in (n, n + 4)]
        return text.shuffle("i16", 4, parts[0], order, parts[1])

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Each pair of activations meets the pairs of all rows."""
        text, found, columns = self.text, list(sums), self._columns
        for number, name in enumerate(entries[0]):
            vector = self._pairs(name)
            start = text.let(f"add i64 {column}, {columns * number}")
            kind = f"<{columns} x i16>"
            some = self.inputs(token, start, kind)
            lanes = [2 * (lane // (2 * self.form.codes.dim)) + lane % 2 for lane in range(8)]
            repeated = text.shuffle("i16", columns, some, lanes)
            found[number % 2] = self.multiplied(found[number % 2], vector, repeated, 8)
        return found

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """The lanes of each row, of 16 columns."""
        text, dim, found = self.text, self.form.codes.dim, []
        for row in range(dim):
            pieces = []
            for names in grouped(entries[0], LANES // self._columns):
                vectors = [self._pairs(name) for name in names]
                own = [lane for lane in range(8) if lane // 2 % dim == row]
                parts, size = vectors, 8
                lanes = [*own, *(8 + lane for lane in own)]
                while len(parts) > 1:
                    parts = [text.shuffle("i16", size, a, lanes, b) for a, b in grouped(parts, 2)]
                    size = len(lanes)
                    lanes = list(range(2 * size))
                pieces.append(text.let(f"sitofp {W16} {parts[0]} to {F16}"))
            found.append(pieces)
        return found

    def lanes(self, sums: Sequence[str]) -> list[str]:
        """The sum of a row in its first lane."""
        text, dim = self.text, self.form.codes.dim
        both = text.let(f"add <4 x i32> {sums[0]}, {sums[1]}")
        floats = text.let(f"sitofp <4 x i32> {both} to <4 x float>")
        zeros = [4] * (LANES - 4 // dim)
        return [
            text.shuffle("float", 4, floats, [*range(row, 4, dim), *zeros], "zeroinitializer")
            for row in range(dim)
        ]

    def totals(self, sums: Sequence[str]) -> list[str]:
        """The lanes of each row."""
        text, dim = self.text, self.form.codes.dim
        both = [text.let(f"sext <4 x i32> {part} to <4 x i64>") for part in sums]
        whole = text.let(f"add <4 x i64> {both[0]}, {both[1]}")
        found = []
        for row in range(dim):
            total = text.let(f"extractelement <4 x i64> {whole}, i64 {row}")
            for lane in range(row + dim, 4, dim):
                one = text.let(f"extractelement <4 x i64> {whole}, i64 {lane}")
                total = text.let(f"add i64 {total}, {one}")
            found.append(total)
        return found


class Single(Looked):
    """Every entry by itself, from tables in memory."""

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether there is a table, and one code for each weight."""
        return not form.codes.identity and not form.together

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor:
        """int8 [planes, dim, 2^window]."""
        assert values.table is not None
        return values.table.transpose(1, 2)

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Vectors of 16 for each dimension and plane."""
        text, codes = self.text, self.form.codes
        self.at_period(period)
        ends = [self.form.bits(code + 1) for code in range(STEP * step, STEP * (step + 1))]
        indices = [self.window(end - codes.window, codes.window) for end in ends]
        found = []
        for dim in range(codes.dim):
            for plane in range(codes.planes):
                start = (plane * codes.dim + dim) << codes.window
                table = text.at(self.table, start)
                for some in grouped(indices, LANES):
                    vector = "poison"
                    for lane, index in enumerate(some):
                        entry = text.load("i8", table, index)
                        vector = text.let(
                            f"insertelement <16 x i8> {vector}, i8 {entry}, i64 {lane}"
                        )
                    found.append(text.let(f"sext <16 x i8> {vector} to {W16}"))
        return [found]
