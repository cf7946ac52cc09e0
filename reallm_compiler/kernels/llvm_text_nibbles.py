"""Codes of 4 bits as entries of 16 bits (`llvm_text_wide`), for blocks of one step.

Bytes of entries are looked up in two registers: the low halves of a step's bytes are its even
codes, the high halves its odd ones, and activations lie in the same order. See `llvm_text_words`,
which is the same for processors with AVX-512.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.kernels import llvm_text_words
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text, constants
from reallm_compiler.kernels.llvm_text_numbers import F16
from reallm_compiler.kernels.llvm_text_product import grouped
from reallm_compiler.kernels.llvm_text_wide import W16, Machine, Wide

BYTES = STEP // 2
"""Bytes of the codes of a step."""

GROUP = 8
"""Bytes that are interleaved with others of their own register's half."""


class Nibbles(Wide):
    """Entries are halved, so that the four of a lane fit: 4 x 16383 x 32384 < 2^31."""

    unit = 2
    evens = True

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether this kernel does the form."""
        return form.codes.planes == 2 and llvm_text_words.halves(form)

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor:
        """uint8 [2, 16]: low bytes of entries, and high ones."""
        return llvm_text_words.halved(values).view(torch.uint8).view(-1, 2).t().contiguous()

    def __init__(self, text: Text, form: Form, machine: Machine) -> None:
        super().__init__(text, replace(form, codes=replace(form.codes, planes=1)), machine)
        self._bytes: list[str] = []

    def begin(self) -> None:
        """Loads the two registers."""
        super().begin()
        text, size = self.text, self.machine.look_up[1]
        for part in range(2):
            table = text.load("<16 x i8>", self.table, 16 * part)
            self._bytes.append(text.shuffle("i8", 16, table, [*range(16)] * (size // 16)))

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Two vectors <16 x i16> of even codes, two of odd ones."""
        text, size = self.text, self.machine.look_up[1]
        kind, halves = f"<{BYTES} x i8>", size // 16
        data = text.load(kind, self.place(period))
        # Instructions interleave within 16 bytes; these are moved so that all come in order.
        groups = range(0, BYTES, GROUP) if halves == 1 else (0, 2 * GROUP, GROUP, 3 * GROUP)
        data = text.shuffle("i8", BYTES, data, [n + byte for n in groups for byte in range(GROUP)])
        even = text.let(f"and {kind} {data}, {constants('i8', [15] * BYTES)}")
        odd = text.let(f"lshr {kind} {data}, {constants('i8', [4] * BYTES)}")
        found = []
        for codes in (even, odd):
            for first in range(0, BYTES, size):
                own = text.shuffle("i8", BYTES, codes, list(range(first, first + size)))
                found += self._looked(own, size)
        return [found]

    def _looked(self, codes: str, size: int) -> list[str]:
        """Entries of so many codes: low bytes beside high ones."""
        text, kind = self.text, f"<{size} x i8>"
        low, high = (
            text.call(kind, self.machine.look_up[0], f"{kind} {table}", f"{kind} {codes}")
            for table in self._bytes
        )
        each = 16 * 16 // size  # of a part of 16 bytes, for a vector
        found = []
        for first in range(0, 16, each):
            own = [n + byte for n in range(first, size, 16) for byte in range(each)]
            both = [lane for byte in own for lane in (byte, size + byte)]
            vector = text.shuffle("i8", size, low, both, high)
            found.append(text.let(f"bitcast <32 x i8> {vector} to {W16}"))
        return found

    def numbers(self, entries: list[list[str]]) -> list[list[str]]:
        """Even and odd ones beside each other."""
        text, pieces = self.text, []
        even, odd = grouped(entries[0], 2)
        for piece in range(STEP // LANES):
            half, first = divmod(piece, 2)
            own = [LANES // 2 * first + code // 2 + LANES * (code % 2) for code in range(LANES)]
            part = text.shuffle("i16", LANES, even[half], own, odd[half])
            pieces.append(text.let(f"sitofp {W16} {part} to {F16}"))
        return [pieces]
