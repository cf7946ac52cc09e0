"""Parameters of the scales: what weights are divided by before they are quantized."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from reallm_compiler.stages.base import FloatType, Stage

Per = Annotated[
    Literal["tensor", "row", "column", "block"],
    Field(
        description="Which weights share a scale; a block is `block` consecutive weights of the "
        "matrix read row by row."
    ),
]
Block = Annotated[int, Field(ge=2, le=65536, description="Weights of a block.")]
ScaleType = Annotated[
    FloatType, Field(description="Stored type of the scales (of the super-scales if bits).")
]
ScaleBits = Annotated[
    int | None,
    Field(
        ge=2, le=8, description="Bits of a second level: scales are quantized with a super-scale."
    ),
]
Superblock = Annotated[int, Field(ge=2, le=65536, description="Scales that share a super-scale.")]
Offset = Annotated[
    Literal["matrix", "superblock"],
    Field(
        description="What a second level counts from: the least scale of the whole matrix, one "
        "float32 (LQ-LoRA); or that of each super-block, stored like the super-scales (SpQR)."
    ),
]
Clip = Annotated[
    Literal["none", "weights", "inputs"],
    Field(
        description="How far the levels of a group reach: to its largest weight (none); or to the "
        "share of it, 1, 0.95, ..., 0.55, that makes least the error of its weights, or that of "
        "its outputs by measured inputs (AWQ)."
    ),
]


Range = Literal["free", "signed", "unit", "integer"]
"""Where scaled weights lie: anywhere, on [-1, 1], on [0, 1], or on [0, 2^bits - 1], where levels
are the integers.
"""


SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Factors of scales that reach to the largest weights: with few levels it pays to clip these."""


class ScalesStage(Stage):
    """Base of the kinds of scales.

    Attributes:
        range: where they put the weights.
        stretches: factors of the scales that rounding with feedback tries in order, until one is
            worse than the one before; 1 is the first. Empty where scales take none.
    """

    range: ClassVar[Range] = "signed"
    stretches: ClassVar[tuple[float, ...]] = ()

    @property
    def searched(self) -> bool:
        """Whether factors of the scales are searched before the codes are chosen, for each group by
        itself; the rounding leaves them as they are then.
        """
        return False

    @property
    def unsearched(self) -> ScalesStage:
        """The same scales with factors of one."""
        return self

    @property
    def from_ends(self) -> bool:
        """Whether scales follow from the ends of each group's range, which can be learned."""
        return False

    def refusal(self, rate: int | Fraction | None) -> str | None:
        """Why a quantizer of so many bits a weight does not go with them; None if it does."""
        return None

    def grouped(self, columns: int) -> int:
        """Consecutive columns of a row that have a scale of their own, stored as a number; 0 where
        scales of a latent with so many columns lie or are stored otherwise.
        """
        return 0


class NoScales(ScalesStage):
    """The quantizer sees the latent as it is."""

    range: ClassVar[Range] = "free"

    kind: Literal["none"] = "none"


class GroupScales(ScalesStage):
    """What all kinds of scales share."""

    kind: str  # narrowed by each kind; here so that it comes first
    per: Per = "block"
    block: Block = 64
    dtype: ScaleType = "float32"
    bits: ScaleBits = None
    superblock: Superblock = 256
    offset: Offset = "matrix"
    clip: Clip = "none"

    @property
    def needs_statistics(self) -> bool:
        """If it clips by measured inputs."""
        return self.clip == "inputs"

    @property
    def searched(self) -> bool:
        """If it clips."""
        return self.clip != "none"

    @property
    def unsearched(self) -> GroupScales:
        """Without clipping."""
        return self.model_copy(update={"clip": "none"})

    def second_level(self, name: str) -> tuple[int | None, int]:
        """Bits and super-block of the second level of an array of scales; None for one level."""
        return self.bits, self.superblock

    @property
    def _one_level(self) -> bool:
        return all(self.second_level(name)[0] is None for name in ("scales", "zeros"))

    def grouped(self, columns: int) -> int:
        """The block, where blocks divide the rows and scales have one level and are not clipped."""
        whole = self.per == "block" and columns % self.block == 0
        return self.block if whole and self._one_level and not self.searched else 0

    @property
    def by_rows(self) -> bool:
        """Whether a scale belongs to one row and is stored by itself.

        Not in float16: whether such scales lose too much can be decided for a whole matrix only.
        """
        return self.per == "row" and self._one_level and self.dtype != "float16"


class RmsScales(GroupScales):
    """s = root mean square of the group."""

    stretches: ClassVar[tuple[float, ...]] = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)

    kind: Literal["rms"]


class AbsmaxScales(GroupScales):
    """s = largest magnitude of the group (NF normalization, QLoRA and LQ-LoRA)."""

    stretches: ClassVar[tuple[float, ...]] = SHRINKS

    kind: Literal["absmax"]

    @property
    def from_ends(self) -> bool:
        """Those of one level that are not searched."""
        return self._one_level and not self.searched


class MinmaxScales(GroupScales):
    """s = max - min with zero point z = min of the group: the quantizer sees [0, 1]."""

    range: ClassVar[Range] = "unit"
    stretches: ClassVar[tuple[float, ...]] = SHRINKS

    kind: Literal["minmax"]
    zero_bits: int | None = Field(
        default=None,
        ge=2,
        le=8,
        description="Bits of the second level of the zero points; `bits` if left out.",
    )
    zero_superblock: int | None = Field(
        default=None,
        ge=2,
        le=65536,
        description="Zero points that share a super-scale; `superblock` if left out.",
    )

    def second_level(self, name: str) -> tuple[int | None, int]:
        """That of the zero points is their own."""
        if name != "zeros":
            return self.bits, self.superblock
        return self.zero_bits or self.bits, self.zero_superblock or self.superblock

    @property
    def from_ends(self) -> bool:
        """Those of one level that are not searched."""
        return self._one_level and not self.searched


class AffineScales(GroupScales):
    """w = s (c - z) of integer codes c with an integer zero point z, so that zero is a level.

    The grid of GPTQ and compressed-tensors: s = (max - min) / (2^bits - 1) of the group and zero,
    z = -min / s rounded. With `symmetric` all z are 2^(bits - 1) and not stored, and s is that of
    the range from -max to max of magnitudes.
    """

    range: ClassVar[Range] = "integer"
    stretches: ClassVar[tuple[float, ...]] = SHRINKS

    kind: Literal["affine"]
    code_bits: int = Field(
        ge=1, le=8, description="Bits of a zero point: those of the quantizer's codes."
    )
    symmetric: bool = Field(
        default=False, description="Levels lie about zero, one more below it than above."
    )

    def refusal(self, rate: int | Fraction | None) -> str | None:
        """Zero points are codes."""
        if rate == self.code_bits:
            return None
        return (
            f"`code_bits: {self.code_bits}` of the `{self.kind}` scales must be the `bits` of "
            f"the quantizer, {rate}"
        )

    @property
    def from_ends(self) -> bool:
        """Those of one level that are not searched."""
        return self._one_level and not self.searched
