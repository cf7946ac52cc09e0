"""Codes that are unpacked in registers (`llvm_text_wide`)."""

from __future__ import annotations

from torch import Tensor

from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.kernels.form import STEP, Form
from reallm_compiler.kernels.llvm_text import constants
from reallm_compiler.kernels.llvm_text_numbers import unpacked
from reallm_compiler.kernels.llvm_text_wide import Wide


class Evened(Wide):
    """Codes of one width that are entries themselves, or look up one of 16."""

    @staticmethod
    def fits(form: Form) -> bool:
        """Whether this kernel does the form."""
        codes = form.codes
        alike = codes.widths == (codes.window,) and codes.dim == 1
        return alike and (codes.identity or codes.window <= 4)

    @staticmethod
    def tables(form: Form, values: WindowValues) -> Tensor | None:
        """int8 [planes, 16]; smaller tables are repeated."""
        if values.table is None:
            return None
        table = values.table[:, :, 0]
        return table.repeat(1, 16 // table.shape[1])

    def entries(self, period: str, step: int) -> list[list[str]]:
        """Codes unpacked, 64 at once."""
        text, codes = self.text, self.form.codes
        value = self._unpacked(period)
        if codes.identity:
            half = constants("i8", [-(1 << codes.window - 1)] * STEP)
            return [self.widened(text.let(f"add <64 x i8> {value}, {half}"), STEP)]
        found = []
        function, size = self.machine.look_up
        for plane in range(codes.planes):
            table = text.load("<16 x i8>", self.table, 16 * plane)
            table = text.shuffle("i8", 16, table, [lane % 16 for lane in range(size)])
            for first in range(0, STEP, size):
                part = text.shuffle("i8", STEP, value, list(range(first, first + size)))
                kind = f"<{size} x i8>"
                part = text.call(kind, function, f"{kind} {table}", f"{kind} {part}")
                found += self.widened(part, size)
        return [found]

    def _unpacked(self, period: str) -> str:
        """<64 x i8>: the codes."""
        text, bits = self.text, self.form.codes.window
        place, size = self.place(period), STEP * bits // 8
        data = text.load(f"<{size} x i8>", place)
        if bits == 8:
            return data
        if 8 % bits == 0:
            # Each byte spreads over as many bytes as it has codes: b | b << (8 - bits) | ...
            each = 8 // bits
            kind = f"<{size} x i{8 * each}>"
            wide = text.let(f"zext <{size} x i8> {data} to {kind}")
            value = wide
            for number in range(1, each):
                by = constants(f"i{8 * each}", [number * (8 - bits)] * size)
                more = text.let(f"shl {kind} {wide}, {by}")
                value = text.let(f"or {kind} {value}, {more}")
            spread = text.let(f"bitcast {kind} {value} to <64 x i8>")
        else:
            return unpacked(text, data, bits, STEP)
        mask = constants("i8", [(1 << bits) - 1] * STEP)
        return text.let(f"and <64 x i8> {spread}, {mask}")
