"""What the size laws of quantizers of single weights share: one code of `bits` bits per weight."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Protocol, TypeVar

from reallm_compiler.stages import QuantizerStage
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.storage.work import WEIGHTS, Work

LEVEL_PASSES = 4
"""Times that a weight is gone over to find its level and to pack its code, about."""


class _WithBits(Protocol):
    bits: int


S = TypeVar("S", bound=QuantizerStage)


class ScalarLaw(SizeLaw[S]):
    """One code per weight.

    Attributes:
        even: levels are evenly spaced, so that a kernel needs no table of them.
    """

    even: ClassVar[bool] = False

    def sections(self, params: S, shape: Shape, context: Context) -> list[SectionSpec]:
        """The codes of a latent [p, q]."""
        return [SectionSpec(role="codes", dtype=f"b{_bits(params)}", shape=shape, term="codes")]

    def work(self, params: S, shape: Shape, context: Context) -> Work:
        """A nearest level for every weight, which is looked up where levels are not even."""
        return {WEIGHTS: LEVEL_PASSES * (1 if self.even else 2) * shape[0] * shape[1]}

    def paper_bits(self, params: S, shape: Shape, context: Context) -> dict[str, Fraction]:
        """b for each weight."""
        return {"codes": Fraction(_bits(params) * shape[0] * shape[1])}

    def code_windows(self, params: S, shape: Shape) -> CodeWindows | None:
        """Codes; None where a row ends within a byte."""
        bits = _bits(params)
        if shape[1] * bits % 8:
            return None
        return CodeWindows(
            window=bits, widths=(bits,), planes=1 if self.even else 2, identity=self.even
        )


def _bits(params: QuantizerStage) -> int:
    with_bits: _WithBits = params  # type: ignore[assignment]
    return with_bits.bits
