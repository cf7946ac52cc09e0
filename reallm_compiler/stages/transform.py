"""Parameters of the transforms: what is done to a matrix before it is encoded."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from reallm_compiler.stages.base import Rational, Stage
from reallm_compiler.stages.scales import Block, Per, ScaleBits, ScaleType, Superblock


class TransformStage(Stage):
    """Base of the kinds of transform.

    Attributes:
        separable: it acts on rows and on columns separately, T(W) = B W A, so that it can act on
            Gram matrices of inputs and outputs too.
    """

    separable: ClassVar[bool] = False

    @property
    def folded(self) -> bool:
        """Whether its inverse is put into what makes the matrix's input, so that nothing of it is
        left to store and the matrix is coded as transformed.
        """
        return False


class Normalize(TransformStage):
    """The matrix divided by scales of its own blocks before it is encoded, and back after."""

    kind: Literal["normalize"]
    by: Literal["absmax", "rms"] = Field(
        default="absmax",
        description="What each group is divided by: its largest magnitude or its root mean square.",
    )
    per: Per = "block"
    block: Block = 64
    dtype: ScaleType = "float32"
    bits: ScaleBits = 8
    superblock: Superblock = 256


class Hadamard(TransformStage):
    """The matrix rotated by blocks of a signed Hadamard matrix, which spreads its outliers.

    Weights of a rotated matrix are nearly normal with one deviation, so that one scale for the
    whole matrix and one codebook for the whole model fit (QuIP#). Nothing is stored for it.
    """

    separable: ClassVar[bool] = True

    kind: Literal["hadamard"]
    sides: Literal["both", "rows", "columns"] = Field(
        default="both",
        description="What is mixed: columns (input features, within each row), rows (output "
        "features), or both.",
    )
    block: int = Field(
        default=128,
        description="Largest block, a power of two from 2 to 4096; a block is the largest power "
        "of two up to it that divides the extent.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the signs.")

    @field_validator("block")
    @classmethod
    def _power_of_two(cls, block: int) -> int:
        if not 2 <= block <= 4096 or block & (block - 1):
            raise ValueError("the block must be a power of two from 2 to 4096")
        return block


def _share(alpha: int | Fraction) -> int | Fraction:
    if not 0 <= alpha <= 1:
        raise ValueError("the exponent must lie between 0 and 1")
    return alpha


class ChannelScale(TransformStage):
    """Columns multiplied by factors by the size of their inputs, which are divided by them.

    So the weights that large inputs meet are coded finer (AWQ). But for a common factor that of a
    column is a^alpha, or a^alpha / w^(1 - alpha) (SmoothQuant), with the mean magnitudes a of its
    input and w of its weights. 16 bits are stored for each column, or none if inputs are divided by
    what makes them (`fold`).
    """

    separable: ClassVar[bool] = True

    kind: Literal["channel_scale"]
    alpha: Annotated[Rational, AfterValidator(_share)] | Literal["search"] = Field(
        default="search",
        description="Exponent of the inputs, 0 to 1; search: that of a grid with the least error "
        "of the outputs, each rounded to the nearest codes.",
    )
    grid: int = Field(
        default=20, ge=1, le=1000, description="What is searched: 0, 1/grid, 2/grid, ... below 1."
    )
    by: Literal["inputs", "both"] = Field(
        default="inputs",
        description="What the factors follow: the inputs, or inputs and weights.",
    )
    fold: bool = Field(
        default=False,
        description="Divide the inputs where they are made, by the gains of the norm or the rows "
        "of the matrix before, and store nothing. All matrices with one input share its factors.",
    )

    @property
    def folded(self) -> bool:
        """As `fold` says."""
        return self.fold

    @property
    def needs_statistics(self) -> bool:
        """Yes."""
        return True
