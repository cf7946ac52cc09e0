"""Narrow codes with scales of blocks, for processors with AVX-512 VBMI and VNNI: 16-bit entries.

Two planes of entries and two of activations would be four sums for each block. Codes of up to 5
bits look up entries of 15 bits in one register instead (vpermw), and activations are integers of
16 bits (vpdpwssd): of 64 codes each lane adds 4 x 16383 x 32384 < 2^31, which becomes float32
before more is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reallm_compiler.codecs.windows import LOW, WindowValues
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import constants
from reallm_compiler.kernels.llvm_text_numbers import F16
from reallm_compiler.kernels.llvm_text_product import grouped
from reallm_compiler.kernels.llvm_text_vbmi import V16, V64, Registers

ENTRIES = 32
"""Numbers of 16 bits in a register, and codes of half a step."""

V32 = "<32 x i16>"


def fits(form: Form) -> bool:
    """Whether it can be done so: blocks of one step, as lanes hold no more."""
    codes, blocks = form.codes, form.blocks
    alike = codes.widths == (codes.window,) and codes.dim == 1 and codes.window <= 5
    return alike and not codes.identity and blocks is not None and blocks.block == STEP


def halves(form: Form) -> bool:
    """Whether the halves of bytes are codes."""
    return fits(form) and form.codes.window == 4


def halved(values: WindowValues) -> Tensor:
    """int16 [2^window]: entries of two planes as one number each, halved."""
    assert values.table is not None
    high, low = values.table[:, :, 0].to(torch.float64)
    whole: Tensor = (LOW * high + low) / 2
    return whole.round().to(torch.int16)


def tables(values: WindowValues) -> Tensor:
    """int16 [32]: repeated."""
    entries = halved(values)
    return entries.repeat(ENTRIES // len(entries))


class Words(Registers):
    """Writes the parts of such a product."""

    def _load_tables(self) -> None:
        self._table = self._text.load(V32, self._text.pointer("tables"))

    def token(self, token: str) -> None:
        """Where the integers of a token lie."""
        text = self._text
        start = text.let(f"mul i64 {token}, {self._stride}")
        place = text.at(self._high, start, "i16")
        self._planes[token] = (place, place)

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Two halves <32 x i16>."""
        text = self._text
        raw, width = self._loaded(period, step), self._windows[step].width
        function = "llvm.x86.avx512.permvar.hi.512"
        indices = self._even_and_odd(raw) if halves(self._form) else self._indices(raw, width)
        return [
            [text.call(V32, function, f"{V32} {self._table}", f"{V32} {one}") for one in indices]
        ]

    def _even_and_odd(self, raw: str) -> list[str]:
        """Codes in the low bits of <32 x i16>, even ones and odd ones."""
        text = self._text
        even = text.let(f"zext <32 x i8> {raw} to {V32}")
        return [even, text.let(f"lshr {V32} {even}, {constants('i16', [4] * ENTRIES)}")]

    def _indices(self, raw: str, width: int) -> list[str]:
        """The first codes and the last ones."""
        text, bits, found = self._text, self._form.codes.window, []
        for half in range(0, STEP, ENTRIES):
            starts = [bits * code for code in range(half, half + ENTRIES)]
            own = [min(start // 8 + byte, width - 1) for start in starts for byte in range(2)]
            moved = text.shuffle("i8", width, raw, own)
            moved = text.let(f"bitcast {V64} {moved} to {V32}")
            shifts = constants("i16", [start % 8 for start in starts])
            found.append(text.let(f"lshr {V32} {moved}, {shifts}"))
        return found

    def sums(self) -> list[tuple[str, str]]:
        """One."""
        return [(V16, "zeroinitializer")]

    def add(
        self, sums: Sequence[str], entries: list[list[str]], token: str, column: str
    ) -> list[str]:
        """Both halves."""
        text, total = self._text, sums[0]
        for number, half in enumerate(entries[0]):
            place = text.let(f"add i64 {column}, {ENTRIES * number}")
            values = text.load(V16, self._planes[token][0], place, "i16")
            words = text.let(f"bitcast {V32} {half} to {V16}")
            total = text.call(
                V16,
                "llvm.x86.avx512.vpdpwssd.512",
                f"{V16} {total}",
                f"{V16} {words}",
                f"{V16} {values}",
            )
        return [total]

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """Four vectors of 16."""
        text, pieces = self._text, []
        (low, high) = entries[0]
        order = list(range(STEP))
        if halves(self._form):
            order = [code // 2 + ENTRIES * (code % 2) for code in order]
        for own in grouped(order, LANES):
            part = text.shuffle("i16", ENTRIES, low, own, high)
            pieces.append(text.let(f"sitofp <16 x i16> {part} to {F16}"))
        return [pieces]

    def lanes(self, sums: Sequence[str]) -> list[str]:
        """As they are: a block is a whole step."""
        return [self._text.let(f"sitofp {V16} {sums[0]} to {F16}")]
