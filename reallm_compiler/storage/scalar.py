"""What the size laws of quantizers of single weights share: one code of `bits` bits per weight."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol, TypeVar

from reallm_compiler.stages import QuantizerStage
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw


class _WithBits(Protocol):
    bits: int


S = TypeVar("S", bound=QuantizerStage)


class ScalarLaw(SizeLaw[S]):
    """One code per weight."""

    def sections(self, params: S, shape: Shape, context: Context) -> list[SectionSpec]:
        """The codes of a latent [p, q]."""
        return [SectionSpec(role="codes", dtype=f"b{_bits(params)}", shape=shape, term="codes")]

    def paper_bits(self, params: S, shape: Shape, context: Context) -> dict[str, Fraction]:
        """b for each weight."""
        return {"codes": Fraction(_bits(params) * shape[0] * shape[1])}


def _bits(params: QuantizerStage) -> int:
    with_bits: _WithBits = params  # type: ignore[assignment]
    return with_bits.bits
