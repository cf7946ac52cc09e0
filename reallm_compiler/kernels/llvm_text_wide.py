"""Codes to weights and sums for processors that multiply 16-bit numbers, 64 codes a step.

Activations are integers of 16 bits. Pairs of entries and activations are multiplied and added in
32 bits (pmaddwd on x86, smull and smlal on ARM); before these could overflow they are added up in
64. There are seven ways from codes to entries:

- `Nibbles`: entries of 16 bits, for codes of 4 bits, are looked up in registers;
- `Evened`: the entry is the code itself, or one of 16, and codes are unpacked in registers;
- `Computed`: the entry is computed from the window;
- `Pairs`: two windows of a trellis are looked up at once in a table in memory;
- `Rows`: a code is looked up once for the rows that it stands for;
- `Vectors`: a code is looked up once for the eight columns that it stands for;
- `Single`: every entry by itself, whatever the form.

`Nibbles`, `Evened` and `Vectors` stand in files of these names, the others in `llvm_text_looked`.
All is plain LLVM but for a few instructions, which `Machine` names for each architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm_compiler.codecs.windows import LOW
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_numbers import F16, product_sum, same
from reallm_compiler.kernels.llvm_text_product import PAGES_AHEAD, Ends, grouped, prefetch

BEHIND = 72
"""Bytes behind the last period of a line that a step may read."""

PIECES = STEP // LANES
"""Vectors of 16 entries that a step's codes make."""

W16 = "<16 x i16>"
S8 = "<8 x i32>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Instructions of an architecture that have no name in plain LLVM.

    Attributes:
        pairs: what multiplies vectors of 16-bit numbers and adds pairs to numbers of 32 bits, by
            the count of the former; plain LLVM for others.
        look_up: (function, bytes) that looks bytes up in 16 entries; lanes of 16 bytes apart.
        extract: takes bits out of 64: from the one on that the low byte of its second argument
            names, as many as the next byte says.
    """

    pairs: Mapping[int, str]
    look_up: tuple[str, int]
    extract: str | None = None


X86 = Machine(
    pairs={8: "llvm.x86.sse2.pmadd.wd", 16: "llvm.x86.avx2.pmadd.wd"},
    look_up=("llvm.x86.avx2.pshuf.b", 32),
    extract="llvm.x86.bmi.bextr.64",
)
ARM = Machine(pairs={}, look_up=("llvm.aarch64.neon.tbl1.v16i8", 16))


class Wide:
    """What the ways have in common.

    Args:
        text: where it is written.
        form: of the codes.
        machine: of the processor.
    """

    bias = 0
    unit = 1
    evens = False

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        self.text = text
        self.form = form
        self.machine = machine
        # 128 steps of two pieces each: 128 x 2 x (2 x 128 x 32384) < 2^31.
        self.most_steps: int | None = 128 // form.streams
        self.period_bytes = form.bits(form.period) // 8
        self.table = self._line = self._inputs = self._stride = ""
        self._stream = ""
        self._ends: Ends
        self._tokens: dict[str, str] = {}

    def begin(self) -> None:
        """What all lines have in common."""
        text = self.text
        self.table, self._inputs = text.pointer("tables"), text.pointer("high")
        self._stride, self._stream = text.slot("plane_stride"), text.slot("line_codes")
        self._ends = Ends(text, self.period_bytes, BEHIND)

    def line(self, base: str) -> None:
        """A line of codes begins at `base`."""
        prefetch(self.text, base, PAGES_AHEAD, self._ends.size)
        self._line = self._ends.line(base)

    def carried(self) -> list[tuple[str, str]]:
        """No values are carried from period to period."""
        return []

    def turn(self, values: Sequence[str]) -> list[str]:
        """The values as they are."""
        return list(values)

    def token(self, token: str) -> None:
        """Where the integers of a token lie."""
        start = self.text.let(f"mul i64 {token}, {self._stride}")
        self._tokens[token] = self.text.at(self._inputs, start, "i16")

    def place(self, period: str) -> str:
        """The address of a period of the line."""
        start = self.text.let(f"mul i64 {period}, {self.period_bytes}")
        return self.text.at(self._line, start)

    def inputs(self, token: str, column: str, kind: str = W16) -> str:
        """Integers of a token."""
        return self.text.load(kind, self._tokens[token], column, "i16")

    def multiplied(self, total: str, a: str, b: str, count: int = LANES) -> str:
        """Sums of 32 bits and the products of 16-bit numbers, added in pairs."""
        text, half = self.text, count // 2
        short, long = f"<{count} x i16>", f"<{half} x i32>"
        if count in self.machine.pairs:
            found = text.call(long, self.machine.pairs[count], f"{short} {a}", f"{short} {b}")
        else:
            wide = f"<{count} x i32>"
            a, b = (text.let(f"sext {short} {one} to {wide}") for one in (a, b))
            product = text.let(f"mul {wide} {a}, {b}")
            even = text.shuffle("i32", count, product, list(range(0, count, 2)))
            odd = text.shuffle("i32", count, product, list(range(1, count, 2)))
            found = text.let(f"add {long} {even}, {odd}")
        return text.let(f"add {long} {total}, {found}")

    # ---- sums of entries as they lie

    @property
    def _parts(self) -> int:
        """Vectors of sums for each row and plane: two; with blocks within a step one a piece."""
        blocks = self.form.blocks
        return PIECES if blocks is not None and blocks.block < STEP else 2

    def sums(self) -> list[tuple[str, str]]:
        """`_parts` for each row and plane."""
        count = self._parts * self.form.codes.planes * self.form.line_rows
        return [(S8, "zeroinitializer")] * count

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Pieces of each plane take turns at its vectors of sums."""
        text, found = self.text, list(sums)
        planes, rows = self.form.codes.planes, self.form.codes.axis == "rows"
        for number, vectors in enumerate(grouped(entries[0], PIECES)):
            dim, plane = divmod(number, planes)
            for piece, vector in enumerate(vectors):
                start = text.let(f"add i64 {column}, {LANES * piece}")
                if not rows:
                    offset = text.let(f"mul i64 {self._stream}, {dim}")
                    start = text.let(f"add i64 {start}, {offset}")
                index = self._parts * (plane + planes * (dim if rows else 0))
                index += piece % self._parts
                inputs = self.inputs(token, start)
                found[index] = self.multiplied(found[index], vector, inputs)
        return found

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """Of both planes."""
        text, codes, found = self.text, self.form.codes, []
        for planes in _grouped_twice(entries[0], codes.planes):
            pieces = []
            for parts in zip(*planes, strict=True):
                value = ""
                for part in parts:
                    one = text.let(f"sitofp {W16} {part} to {F16}")
                    value = product_sum(text, one, value, same(LOW)) if value else one
                pieces.append(value)
            found.append(pieces)
        return found

    def lanes(self, sums: Sequence[str]) -> list[str]:
        """Pairs of neighbours added up where pieces stand by themselves."""
        return [self._lanes(own) for own in grouped(sums, self._parts * self.form.codes.planes)]

    def _lanes(self, sums: Sequence[str]) -> str:
        text, half = self.text, LANES // 2
        value = ""
        for parts in grouped(sums, self._parts):
            halves = parts
            if len(parts) == PIECES:
                halves = []
                for low, high in grouped(parts, 2):
                    even, odd = (
                        text.shuffle("i32", half, low, list(range(first, LANES, 2)), high)
                        for first in (0, 1)
                    )
                    halves.append(text.let(f"add {S8} {even}, {odd}"))
            whole = text.shuffle("i32", half, halves[0], list(range(LANES)), halves[1])
            one = text.let(f"sitofp <16 x i32> {whole} to {F16}")
            value = product_sum(text, one, value, same(LOW)) if value else one
        return value

    def totals(self, sums: Sequence[str]) -> list[str]:
        """The high plane first."""
        found = []
        for planes in grouped(sums, self._parts * self.form.codes.planes):
            total = "0"
            for pair in grouped(planes, self._parts):
                total = self.text.let(f"mul i64 {total}, {LOW}")
                for part in pair:
                    wide = self.text.let(f"sext {S8} {part} to <8 x i64>")
                    one = self.text.call("i64", "llvm.vector.reduce.add.v8i64", f"<8 x i64> {wide}")
                    total = self.text.let(f"add i64 {total}, {one}")
            found.append(total)
        return found

    def widened(self, entries: str, count: int) -> list[str]:
        """<count x i8> as vectors <16 x i16>."""
        found = []
        for first in range(0, count, LANES):
            part = self.text.shuffle("i8", count, entries, list(range(first, first + LANES)))
            found.append(self.text.let(f"sext <16 x i8> {part} to {W16}"))
        return found


def _grouped_twice(vectors: list[str], planes: int) -> list[list[list[str]]]:
    """[dimension][plane][piece]."""
    pieces = grouped(vectors, PIECES)
    return [pieces[first : first + planes] for first in range(0, len(pieces), planes)]
