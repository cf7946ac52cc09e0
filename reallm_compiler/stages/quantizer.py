"""Parameters of the quantizer: how the scaled latent becomes codes."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from reallm_compiler.stages.base import FloatType, Rational, Stage, as_fraction, plain_number
from reallm_compiler.stages.scales import Range


class QuantizerStage(Stage):
    """Base of the kinds of quantizer.

    Attributes:
        ranges: of the scaled weights that it can code (`scales.Range`); one that leaves out `free`
            needs scales.
        shares: what the matrices of a share group store once, in words; None if nothing.
        codes_latents: it can code the latents of an autoencoder while that is trained.
        coarse: it stores few bits, so that a trained autoencoder gains by learning with its codes.
    """

    ranges: ClassVar[frozenset[Range]] = frozenset({"free", "signed", "unit"})
    shares: ClassVar[str | None] = None
    codes_latents: ClassVar[bool] = True
    coarse: ClassVar[bool] = True


class NoQuantizer(QuantizerStage):
    """Latents stored as numbers."""

    coarse: ClassVar[bool] = False

    kind: Literal["none"] = "none"
    dtype: Literal["source", "float32", "float16", "bfloat16"] = Field(
        default="source", description="Stored type; `source` is the checkpoint's own."
    )


class UniformQuantizer(QuantizerStage):
    """Evenly spaced levels: 2^bits over [-1, 1], or over [0, 1] under `minmax` scales."""

    ranges: ClassVar[frozenset[Range]] = frozenset({"signed", "unit"})

    kind: Literal["uniform"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class NormalFloatQuantizer(QuantizerStage):
    """NF-b: quantiles of the normal distribution on [-1, 1] with an exact 0 (QLoRA)."""

    ranges: ClassVar[frozenset[Range]] = frozenset({"signed"})

    kind: Literal["normal_float"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class VectorQuantizer(QuantizerStage):
    """k-means codebook of 2^(bits x dim) codewords of dimension dim (paper, section 3)."""

    shares: ClassVar[str | None] = "a codebook"

    kind: Literal["vq"]
    bits: Rational = Field(description="Bits per weight b; b x dim must be an integer up to 16.")
    dim: int = Field(ge=1, le=16, description="Dimension d of the vectors.")
    axis: Literal["rows", "cols"] = Field(
        default="rows",
        description="rows: a vector is dim consecutive rows of one column; cols: dim consecutive "
        "columns of one row.",
    )
    dtype: Literal["int8", FloatType] = Field(
        default="int8",
        description="Stored type of the codebook; `int8` has one float32 scale for all of it.",
    )
    iterations: int = Field(default=25, ge=1, le=1000, description="Lloyd iterations at most.")

    @property
    def index_bits(self) -> int:
        """Bits b x d of one code."""
        return int(self.bits * self.dim)

    @field_validator("bits")
    @classmethod
    def _bits_positive(cls, bits: int | Fraction) -> int | Fraction:
        if bits <= 0:
            raise ValueError("bits must be above 0")
        return bits

    @model_validator(mode="after")
    def _index_fits(self) -> VectorQuantizer:
        product = Fraction(self.bits) * self.dim
        if product.denominator != 1 or not 1 <= product <= 16:
            raise ValueError(
                f"bits x dim is {plain_number(as_fraction(product))}; "  # type: ignore[arg-type]
                "it must be an integer from 1 to 16"
            )
        return self


class TrellisQuantizer(QuantizerStage):
    """Trellis-coded quantiser: a weight's value is looked up by its own code and those before it.

    A row is one sequence; the last `memory` bits of its codes are the state that picks the value
    from a learned table, and the codes of a row are chosen together (Viterbi; QTIP's bit-shift
    trellis). Of all quantisers here it has the least error at equal bits.
    """

    shares: ClassVar[str | None] = "a table"
    codes_latents: ClassVar[bool] = False

    kind: Literal["trellis"]
    bits: Rational = Field(
        description="Bits per weight, 1 to 8; with a fraction such as 9/4 that share of the "
        "columns, those with most energy, gets one bit more than the others."
    )
    memory: int = Field(
        default=10,
        ge=2,
        le=16,
        description="Bits of the state; the table has 2^memory values. Time to encode grows with "
        "2^memory.",
    )
    dtype: FloatType = Field(default="float16", description="Stored type of the table.")
    iterations: int = Field(
        default=10, ge=1, le=1000, description="Passes in which the table is learned."
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of a code: of narrow columns, and of wide ones where there are any."""
        low = int(self.bits)
        return (low,) if low == self.bits else (low, low + 1)

    @field_validator("bits")
    @classmethod
    def _bits_in_range(cls, bits: int | Fraction) -> int | Fraction:
        if not 1 <= bits <= 8:
            raise ValueError("bits must lie between 1 and 8")
        return bits

    @model_validator(mode="after")
    def _memory_holds_a_code(self) -> TrellisQuantizer:
        if self.memory <= self.widths[-1]:
            raise ValueError(
                f"a memory of {self.memory} bits has no room for codes of {self.widths[-1]} bits "
                "and what came before them"
            )
        return self
