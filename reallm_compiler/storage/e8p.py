"""Size law of the lattice quantizer `e8p`: 16 bits for 8 columns of a row, and more for the rest.

A latent [p, q] is cut into p x ceil(q / 8) vectors of 8 consecutive columns of a row. At 3 bits a
second code of 8 bits, at 4 bits one of 16 bits codes what the first one leaves. Nothing else is
stored: the points are made by rule.
"""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.stages import E8PQuantizer
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.vq import code_shape
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.storage.work import LATTICE, Work

FIRST_BITS = 16


def rest_bits(params: E8PQuantizer) -> int:
    """Bits of the second code of a vector; 0 without one."""
    return params.bits * params.dim - FIRST_BITS


class E8PLaw(SizeLaw[E8PQuantizer]):
    """Codes of vectors of 8."""

    def sections(self, params: E8PQuantizer, shape: Shape, context: Context) -> list[SectionSpec]:
        """The codes of a latent [p, q], and the second ones."""
        grid = code_shape(params, shape)
        widths = {"codes": FIRST_BITS, "rest_codes": rest_bits(params)}
        return [
            SectionSpec(role=role, dtype=f"b{bits}", shape=grid, term="codes")
            for role, bits in widths.items()
            if bits
        ]

    def paper_bits(
        self, params: E8PQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """b for each weight."""
        return {"codes": Fraction(params.bits * shape[0] * shape[1])}

    def work(self, params: E8PQuantizer, shape: Shape, context: Context) -> Work:
        """Every vector, once for each of its codes."""
        return {LATTICE: shape[0] * shape[1] * (2 if rest_bits(params) else 1)}

    def code_windows(self, params: E8PQuantizer, shape: Shape) -> CodeWindows | None:
        """One code is one window; None where a row of second ones ends within a byte."""

        def windows(bits: int, section: str, rest: CodeWindows | None) -> CodeWindows:
            return CodeWindows(
                window=bits,
                widths=(bits,),
                dim=params.dim,
                axis=params.axis,
                section=section,
                rest=rest,
            )

        bits = rest_bits(params)
        if code_shape(params, shape)[1] * bits % 8:
            return None
        return windows(FIRST_BITS, "codes", windows(bits, "rest_codes", None) if bits else None)
