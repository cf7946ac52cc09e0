"""Codes to weights and sums for processors with AVX-512 VBMI and VNNI, 64 codes a step.

A step loads the bytes of 64 codes, moves to each code's eight bytes those that its window lies in
(vpermb), takes the low 8 bits of all windows at once (vpmultishiftqb), and looks them up in tables
that stay in registers, 128 entries a time (vpermi2b). Loads have no masks, which cost as much as a
look-up does. Weights are bytes without sign, which is how vpdpbusd takes them: entries have `BIAS`
added, and the sums it times the sum of the activations too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reallm_compiler.codecs.windows import LOW, WindowValues
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text, constants
from reallm_compiler.kernels.llvm_text_numbers import F16, product_sum, same
from reallm_compiler.kernels.llvm_text_product import PAGES_AHEAD, Ends, grouped, prefetch

FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vnni")

BIAS = 128

AHEAD = 2048
"""Bytes from the codes of a step to those that are prefetched."""

WIDTHS = (16, 32, STEP)
"""Sizes of vector loads in bytes."""

MOST_REGISTERS = 20
"""Tables that fill more registers lie in memory, where `llvm_text_wide` looks them up."""

V64 = "<64 x i8>"
V16 = "<16 x i32>"
M64 = "<64 x i1>"


def fits(form: Form) -> bool:
    """Whether the codes of a form can be read so."""
    if form.together:
        return False
    try:
        for step in range(form.period // STEP):
            Window(form, step)
    except ValueError:
        return False
    return form.codes.identity or table_registers(form) <= MOST_REGISTERS


def halves(form: Form) -> bool:
    """Whether the halves of bytes are codes, and entries themselves."""
    codes, blocks = form.codes, form.blocks
    alone = codes.widths == (codes.window,) == (4,) and codes.dim == 1 and codes.identity
    return alone and (blocks is None or blocks.block % STEP == 0)


def table_registers(form: Form) -> int:
    """Registers that the tables fill."""
    return form.codes.planes * form.codes.dim * max(1, (1 << form.codes.window) // STEP)


def tables(form: Form, values: WindowValues) -> Tensor | None:
    """uint8 [planes, dim, at least 64]: entries with the bias; small tables are repeated."""
    if values.table is None:
        return None
    biased = values.table.to(torch.int16).add(BIAS).to(torch.uint8).transpose(1, 2)
    return biased.repeat(1, 1, max(1, STEP // biased.shape[2]))


def bias(form: Form) -> int:
    """What entries are larger in sums than they are."""
    each = 1 << form.codes.window - 1 if form.codes.identity else BIAS
    return each * (1 if form.codes.planes == 1 else LOW + 1)


class Window:
    """Where the windows of one step of a period lie.

    Attributes:
        first: the first byte that is loaded, from the start of the period.
        width: bytes that are loaded: 16, 32 or 64.
        bytes: for each byte of the result the loaded byte.
        shifts: the first bit of each code's window in its eight bytes.
    """

    def __init__(self, form: Form, step: int) -> None:
        codes = form.codes
        starts = [form.bits(STEP * step + code + 1) - codes.window for code in range(STEP)]
        homes = [min(start // 8 for start in starts[code : code + 8]) for code in range(0, 64, 8)]
        self.first = min(homes)
        span = max((start + codes.window - 1) // 8 for start in starts) - self.first + 1
        self.shifts = [start - 8 * homes[code // 8] for code, start in enumerate(starts)]
        if span > STEP or max(self.shifts) + codes.window > 64:
            raise ValueError("the windows of a step do not fit into registers")
        self.width = next(width for width in WIDTHS if span <= width)
        self.bytes = [
            min(home - self.first + byte, self.width - 1) for home in homes for byte in range(8)
        ]
        self.whole = codes.window == 8 and codes.widths == (8,)


class Registers:
    """Writes the parts of a product that know the processor.

    Args:
        text: where it is written.
        form: of the codes.
    """

    most_steps: int | None = None

    def __init__(self, text: Text, form: Form) -> None:
        self._text = text
        self._form = form
        self.bias = bias(form)
        self._powers = form.codes.planes + 1
        self._high = self._low = self._stride = self._stream = ""
        self._planes: dict[str, tuple[str, str]] = {}
        self._windows = [Window(form, step) for step in range(form.period // STEP)]
        self._period_bytes = form.bits(form.period) // 8
        self._tables: list[list[str]] = []  # [plane x dim][register]
        self._fronts = [step for step, window in enumerate(self._windows) if window.first < 0]
        self._masks: list[str] = []  # of moved bytes, for steps that begin before a line
        self._base = ""
        self._ends: Ends

    def begin(self) -> None:
        """Loads the tables."""
        text = self._text
        self._high, self._low = text.pointer("high"), text.pointer("low")
        self._stride, self._stream = text.slot("plane_stride"), text.slot("line_codes")
        self._load_tables()
        self._ends = Ends(text, self._period_bytes, STEP)

    def _load_tables(self) -> None:
        text, codes = self._text, self._form.codes
        if codes.identity:
            return
        tables = text.pointer("tables")
        each = max(1, 2**codes.window // STEP)
        for table in range(codes.planes * codes.dim):
            self._tables.append(
                [text.load(V64, tables, table * each + n, V64) for n in range(each)]
            )

    def line(self, base: str) -> None:
        """A line of codes begins at `base`."""
        prefetch(self._text, base, PAGES_AHEAD, self._ends.size)
        self._base = self._ends.line(base)

    def carried(self) -> list[tuple[str, str]]:
        """For steps that begin before a line the mask of bytes that lie in it."""
        found = []
        for step in self._fronts:
            window = self._windows[step]
            inside = [int(byte >= -window.first) for byte in window.bytes]
            found.append((M64, constants("i1", inside)))
        return found

    def turn(self, values: Sequence[str]) -> list[str]:
        """After the first period all bytes do."""
        self._masks = list(values)
        return [constants("i1", [1] * STEP)] * len(values)

    def entries(self, period: str, step: int) -> list[list[str]]:
        """<64 x i8>, biased, for each dimension and plane."""
        text, codes = self._text, self._form.codes
        if halves(self._form):
            return [[self._nibbles(self._loaded(period, step))]]
        value = self._windowed(period, step)
        low = value[0]
        if codes.identity:
            if codes.window < 8:
                mask = constants("i8", [2**codes.window - 1] * 64)
                low = text.let(f"and {V64} {low}, {mask}")
            return [[low]]
        masks = [self._bit(value, bit) for bit in range(7, codes.window)]
        found = [self._look_up(table, low, masks) for table in self._tables]
        return [
            [found[plane * codes.dim + row] for plane in range(codes.planes)]
            for row in range(codes.dim)
        ]

    def _nibbles(self, raw: str) -> str:
        """Codes of <32 x i8>, even ones and odd ones."""
        text = self._text
        twice = text.shuffle("i8", STEP // 2, raw, [*range(STEP // 2)] * 2)
        twice = text.let(f"bitcast {V64} {twice} to <8 x i64>")
        twice = text.let(f"lshr <8 x i64> {twice}, {constants('i64', [0] * 4 + [4] * 4)}")
        twice = text.let(f"bitcast <8 x i64> {twice} to {V64}")
        return text.let(f"and {V64} {twice}, {constants('i8', [15] * STEP)}")

    def _windowed(self, period: str, step: int) -> list[str]:
        """The low 8 bits of the windows, and the bits above them where there are any."""
        text, window = self._text, self._windows[step]
        raw = self._loaded(period, step)
        if window.whole:
            return [raw]
        moved = text.shuffle("i8", window.width, raw, window.bytes)
        if step in self._fronts:
            mask = self._masks[self._fronts.index(step)]
            moved = text.let(f"select {M64} {mask}, {V64} {moved}, {V64} zeroinitializer")
        parts = [window.shifts]
        if self._form.codes.window > 8:
            parts.append([shift + 8 for shift in window.shifts])
        return [
            text.call(
                V64,
                "llvm.x86.avx512.pmultishift.qb.512",
                f"{V64} {constants('i8', shifts)}",
                f"{V64} {moved}",
            )
            for shifts in parts
        ]

    def _loaded(self, period: str, step: int) -> str:
        """<width x i8>: the bytes of a step, and what lies before the line and behind it."""
        text, window = self._text, self._windows[step]
        start = text.let(f"mul i64 {period}, {self._period_bytes}")
        place = text.at(self._base, text.let(f"add i64 {start}, {window.first}"))
        prefetch(text, place, AHEAD)
        return text.load(f"<{window.width} x i8>", place)

    def _bit(self, value: list[str], bit: int) -> str:
        """<64 x i1>: a bit of each window."""
        part = value[bit // 8]
        one = constants("i8", [1 << bit % 8 if bit % 8 < 7 else -128] * 64)
        hit = self._text.let(f"and {V64} {part}, {one}")
        return self._text.let(f"icmp ne {V64} {hit}, zeroinitializer")

    def _look_up(self, table: list[str], low: str, masks: list[str]) -> str:
        text = self._text
        if len(table) == 1:
            return text.call(
                V64, "llvm.x86.avx512.permvar.qi.512", f"{V64} {table[0]}", f"{V64} {low}"
            )
        if len(masks) == 1:
            # Each half overwrites the indices that are its own: look-ups, and nothing to select.
            other = text.let(f"xor {M64} {masks[0]}, {constants('i1', [1] * STEP)}")
            for mask, first in ((other, 0), (masks[0], 2)):
                found = self._looked(table, first, low)
                low = text.let(f"select {M64} {mask}, {V64} {found}, {V64} {low}")
            return low
        every = [self._looked(table, first, low) for first in range(0, len(table), 2)]
        for mask in masks:
            every = [
                text.let(f"select {M64} {mask}, {V64} {every[n + 1]}, {V64} {every[n]}")
                for n in range(0, len(every), 2)
            ]
        return every[0]

    def _looked(self, table: list[str], first: int, index: str) -> str:
        """Entries of two registers."""
        return self._text.call(
            V64,
            "llvm.x86.avx512.vpermi2var.qi.512",
            f"{V64} {table[first]}",
            f"{V64} {index}",
            f"{V64} {table[first + 1]}",
        )

    # ---- sums

    def token(self, token: str) -> None:
        """Where the planes of a token lie."""
        text = self._text
        start = text.let(f"mul i64 {token}, {self._stride}")
        self._planes[token] = (text.at(self._high, start), text.at(self._low, start))

    def sums(self) -> list[tuple[str, str]]:
        """For each row one for each power of `LOW` that planes of entries and inputs make up."""
        return [(V16, "zeroinitializer")] * (self._powers * self._form.line_rows)

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """The products of both planes of 64 activations with each plane of entries."""
        text, rows = self._text, self._form.codes.axis == "rows"
        found = list(sums)
        for number, planes in enumerate(entries):
            first = number * self._powers if rows else 0
            if number and not rows:
                column = text.let(f"add i64 {column}, {self._stream}")
            for plane, piece in enumerate(planes):
                for part, pointer in enumerate(self._planes[token]):
                    index = first + plane + part
                    # Up to LLVM 21 the bytes are said to be 32-bit numbers; later ones take both.
                    values = text.load(V16, pointer, column)
                    words = text.let(f"bitcast {V64} {piece} to {V16}")
                    found[index] = text.call(
                        V16,
                        "llvm.x86.avx512.vpdpbusd.512",
                        f"{V16} {found[index]}",
                        f"{V16} {words}",
                        f"{V16} {values}",
                    )
        return found

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """With the bias in forms with blocks, else without."""
        text, codes, found = self._text, self._form.codes, []
        kind = "uitofp" if self._form.blocks is not None else "sitofp"
        each = 1 << codes.window - 1 if codes.identity else BIAS
        taken = constants("i8", [-each] * STEP)
        for planes in entries:
            if self._form.blocks is None:
                planes = [text.let(f"add {V64} {plane}, {taken}") for plane in planes]
            pieces = []
            order = list(range(STEP))
            if halves(self._form):
                order = [code // 2 + STEP // 2 * (code % 2) for code in order]
            for own in grouped(order, LANES):
                value = ""
                for plane in planes:
                    part = text.shuffle("i8", STEP, plane, own)
                    one = text.let(f"{kind} <16 x i8> {part} to {F16}")
                    value = product_sum(text, one, value, same(LOW)) if value else one
                pieces.append(value)
            found.append(pieces)
        return found

    def lanes(self, sums: Sequence[str]) -> list[str]:
        """The two highest powers as integers, which fit for a block."""
        return [self._lanes(own) for own in grouped(sums, self._powers)]

    def _lanes(self, sums: Sequence[str]) -> str:
        text = self._text
        factor = constants("i32", [LOW] * LANES)
        whole = text.let(f"mul {V16} {sums[0]}, {factor}")
        whole = text.let(f"add {V16} {whole}, {sums[1]}")
        value = text.let(f"sitofp {V16} {whole} to {F16}")
        for part in sums[2:]:
            one = text.let(f"sitofp {V16} {part} to {F16}")
            value = product_sum(text, one, value, same(LOW))
        return value

    def totals(self, sums: Sequence[str]) -> list[str]:
        """The highest power first."""
        return [self._total(own) for own in grouped(sums, self._powers)]

    def _total(self, sums: Sequence[str]) -> str:
        total = "0"
        for part in sums:
            one = self._text.call("i32", "llvm.vector.reduce.add.v16i32", f"{V16} {part}")
            wide = self._text.let(f"sext i32 {one} to i64")
            total = self._text.let(f"mul i64 {total}, {LOW}")
            total = self._text.let(f"add i64 {total}, {wide}")
        return total
