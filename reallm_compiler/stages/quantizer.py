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
        per_matrix: parameters in which the matrices of a share group may differ all the same.
        codes_latents: it can code the latents of an autoencoder while that is trained.
        recodes: the codes of some columns can be chosen again with all others as they are.
        coarse: it stores few bits, so that a trained autoencoder gains by learning with its codes.
        scalar: each weight has a code of its own, for one of some fixed levels.
        even: and the levels are evenly spaced.
        codes_caches: numbers are coded as they come, without a search, so that it can code keys and
            values while a model runs.
    """

    ranges: ClassVar[frozenset[Range]] = frozenset({"free", "signed", "unit"})
    shares: ClassVar[str | None] = None
    per_matrix: ClassVar[frozenset[str]] = frozenset()
    codes_latents: ClassVar[bool] = True
    recodes: ClassVar[bool] = True
    coarse: ClassVar[bool] = True
    scalar: ClassVar[bool] = False
    even: ClassVar[bool] = False
    codes_caches: ClassVar[bool] = False

    @property
    def learns_tables(self) -> bool:
        """Whether it has tables that a share group can store once."""
        return self.shares is not None

    @property
    def rate(self) -> int | Fraction | None:
        """Bits of code for each weight, the `bits` of kinds that have codes; None without codes."""
        bits: int | Fraction | None = getattr(self, "bits", None)
        return bits

    @property
    def rows_together(self) -> int:
        """Rows of which one code holds a weight each."""
        return 1


class NoQuantizer(QuantizerStage):
    """Latents stored as numbers."""

    coarse: ClassVar[bool] = False

    kind: Literal["none"] = "none"
    dtype: Literal["source", "float32", "float16", "bfloat16"] = Field(
        default="source", description="Stored type; `source` is the checkpoint's own."
    )


class UniformQuantizer(QuantizerStage):
    """Evenly spaced levels: 2^bits over [-1, 1], over [0, 1] under `minmax` scales, or the integers
    from 0 on under `affine` ones.
    """

    ranges: ClassVar[frozenset[Range]] = frozenset({"signed", "unit", "integer"})
    scalar: ClassVar[bool] = True
    even: ClassVar[bool] = True
    codes_caches: ClassVar[bool] = True

    kind: Literal["uniform"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class NormalFloatQuantizer(QuantizerStage):
    """NF-b: quantiles of the normal distribution on [-1, 1] with an exact 0 (QLoRA)."""

    ranges: ClassVar[frozenset[Range]] = frozenset({"signed"})
    scalar: ClassVar[bool] = True
    codes_caches: ClassVar[bool] = True

    kind: Literal["normal_float"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class VectorQuantizer(QuantizerStage):
    """k-means codebook of 2^(bits x dim) codewords of dimension dim (paper, section 3)."""

    shares: ClassVar[str | None] = "a codebook"
    codes_caches: ClassVar[bool] = True

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

    @property
    def rows_together(self) -> int:
        """Those of a vector along the rows."""
        return self.dim if self.axis == "rows" else 1

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


class E8PQuantizer(QuantizerStage):
    """Points of the lattice E8 for 8 columns of a row together, made by rule (QuIP#).

    Nothing is learned or stored but codes. Meant for normal weights (`hadamard` and `rms` scales).
    """

    ranges: ClassVar[frozenset[Range]] = frozenset({"free", "signed"})
    codes_latents: ClassVar[bool] = False
    codes_caches: ClassVar[bool] = True

    kind: Literal["e8p"]
    bits: Literal[2, 3, 4] = Field(
        default=2,
        description="Bits per weight; with 3 and 4, what the first code leaves is coded once more.",
    )

    @property
    def dim(self) -> int:
        """Columns of a vector."""
        return 8

    @property
    def axis(self) -> Literal["cols"]:
        """Vectors lie along the columns."""
        return "cols"

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class AdditiveQuantizer(QuantizerStage):
    """Sums of codewords, one of each of several codebooks, for dim columns of a row (AQLM).

    The codebooks are learned by residual k-means and then together. The usual scales are `rms` per
    row: a row divided by its norm.
    """

    shares: ClassVar[str | None] = "codebooks"
    codes_latents: ClassVar[bool] = False

    kind: Literal["additive"]
    codebooks: int = Field(default=2, ge=1, le=8, description="Number M of codebooks.")
    code_bits: int = Field(
        default=8, ge=1, le=16, description="Bits B of a code: a codebook has 2^B codewords."
    )
    dim: int = Field(
        default=8, ge=1, le=64, description="Columns of a vector d; the rate is M B / d."
    )
    dtype: Literal["int8", FloatType] = Field(
        default="int8",
        description="Stored type of the codebooks; `int8` has one float32 scale for all of them.",
    )
    beam: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Sums that the search keeps from codebook to codebook. Time to encode grows "
        "with them.",
    )
    iterations: int = Field(
        default=25,
        ge=1,
        le=1000,
        description="Iterations of k-means, and rounds in which the codebooks are fitted together, "
        "at most.",
    )

    @property
    def bits(self) -> Fraction:
        """Bits per weight."""
        return Fraction(self.codebooks * self.code_bits, self.dim)

    @property
    def axis(self) -> Literal["cols"]:
        """Vectors lie along the columns."""
        return "cols"

    @model_validator(mode="after")
    def _codes_fit(self) -> AdditiveQuantizer:
        if self.codebooks * self.code_bits > 48:
            raise ValueError(
                "the codes of a vector, codebooks x code_bits, can have 48 bits at most"
            )
        return self


class TrellisQuantizer(QuantizerStage):
    """Trellis-coded quantizer: a weight's value is looked up by its own code and those before it.

    A row is one sequence; the last `state_bits` bits of its codes are the state that picks the
    value from a table, and the codes of a row are chosen together (QTIP's bit-shift trellis). Of
    all quantizers here it has the least error at equal bits.
    """

    shares: ClassVar[str | None] = "a table"
    # States index the table, whatever the rate.
    per_matrix: ClassVar[frozenset[str]] = frozenset({"bits"})
    codes_latents: ClassVar[bool] = False
    recodes: ClassVar[bool] = False

    kind: Literal["trellis"]
    bits: Rational = Field(
        description="Bits per weight, 1 to 8, a multiple of 1/16; with a fraction such as 35/16 "
        "that share of the columns, those whose errors cost most, has one bit more than the others."
    )
    state_bits: int = Field(
        default=10, ge=2, le=16, description="Bits of the state; the table has 2^state_bits values."
    )
    table: Literal["learned", "computed"] = Field(
        default="learned",
        description="learned: the table is fitted to the weights and stored. computed: it is a "
        "hash of the state, nearly normal, and nothing is stored; meant for 12 state bits and more "
        "and normal weights (`hadamard` and `rms` scales).",
    )
    dtype: Literal["int8", FloatType] = Field(
        default="int8",
        description="Stored type of a learned table; int8 has one scale for the whole table.",
    )
    paths: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="Paths that the search keeps, 2^state_bits at most. Time to encode grows with "
        "them.",
    )
    iterations: int = Field(
        default=20, ge=1, le=1000, description="Passes in which the table is learned."
    )

    @property
    def learns_tables(self) -> bool:
        """Whether the table is learned."""
        return self.table == "learned"

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of a code: of most columns, and of high-rate columns where there are any."""
        low = int(self.bits)
        return (low,) if low == self.bits else (low, low + 1)

    @field_validator("bits")
    @classmethod
    def _bits_in_range(cls, bits: int | Fraction) -> int | Fraction:
        if not 1 <= bits <= 8:
            raise ValueError("bits must lie between 1 and 8")
        if 16 % Fraction(bits).denominator:
            raise ValueError("bits must be a multiple of 1/16")
        return bits

    @model_validator(mode="after")
    def _state_holds_a_code(self) -> TrellisQuantizer:
        if self.state_bits <= self.widths[-1]:
            raise ValueError(
                f"a state of {self.state_bits} bits must be longer than a code of "
                f"{self.widths[-1]} bits"
            )
        return self
