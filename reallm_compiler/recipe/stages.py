"""The words of a matrix plan: each stage is a kind with parameters.

    W [p, q]  ~  R                                            residual, the part tuned later
              +  T^-1( D_phi( P^-1( s * C[codes] + z ) ) )    coded part, frozen
    then DoRA: each output row is rescaled to its stored magnitude

A `MatrixPlan` says for one matrix which kind stands at each stage. The models only say what may
be written; what a kind costs is its size law in `layouts`, what it does is its codec in `codecs`.
The names of kinds and parameters are the words of the recipe language.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

FloatType = Literal["float32", "float16", "bfloat16"]


class Stage(BaseModel):
    """Base of all stage models: closed (an unknown key is an error), frozen, strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9}| ?/ ?0*[1-9]\d{0,8})?", re.ASCII)


def _as_fraction(value: object) -> object:
    """`1/64` and `2.5` as a Fraction; integers stay integers; all else goes on to validation."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not a truth value")
    if isinstance(value, str):
        # Only short plain forms: Fraction("1e999999999") would fill the memory.
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"a number or a fraction such as 1/64 is wanted, not `{value[:40]}`")
        value = Fraction(value.replace(" ", ""))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a finite number is wanted")
        value = Fraction(str(value))
    if isinstance(value, Fraction) and value.denominator == 1:
        return int(value)
    return value


def _plain_number(value: int | Fraction) -> int | str:
    return value if isinstance(value, int) else f"{value.numerator}/{value.denominator}"


Rational = Annotated[
    int | Fraction,
    BeforeValidator(_as_fraction, json_schema_input_type=int | float | str),
    PlainSerializer(_plain_number, return_type=int | str),
]


def _as_whole(value: object) -> object:
    """`7.2e6` as the integer it is; all else goes on to validation."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_tuple(value: object) -> object:
    """A list as a tuple, which can be hashed; all else goes on to validation."""
    return tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_as_whole, json_schema_input_type=int | float)]
Extent = Annotated[int, Field(ge=1, le=65536)]


# ---- residual --------------------------------------------------------------------------------


class NoResidual(Stage):
    """No residual: the coded part is the whole matrix."""

    kind: Literal["none"] = "none"


class LowRank(Stage):
    """A product of two factors, R = L1 L2 with L1 [p, r] and L2 [r, q] (paper, section 3)."""

    kind: Literal["low_rank"]
    rank: Rational = Field(
        description="Rank r: an integer, or a fraction of min(p, q) such as 1/64; "
        "never above min(p, q).",
    )
    fit: Literal["svd", "alternating", "zero"] = Field(
        default="svd",
        description="svd: one truncated SVD; alternating: SVD and quantiser in turn until the "
        "error rises (LQ-LoRA, LoftQ); zero: L1 = 0, L2 random (QLoRA).",
    )
    order: Literal["residual_first", "quantizer_first"] = Field(
        default="residual_first",
        description="Which part sees the whole matrix first: the residual (LQ-LoRA) or the "
        "quantiser (LoftQ).",
    )
    iterations: int = Field(default=100, ge=1, le=1000, description="Cap of the alternating loop.")
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float16",
        description="Stored type of the factors; int8 adds one float16 scale for each column of "
        "L1 and each row of L2.",
    )

    @field_validator("rank")
    @classmethod
    def _rank_in_range(cls, rank: int | Fraction) -> int | Fraction:
        if rank <= 0:
            raise ValueError("the rank must be above 0; `residual: {kind: none}` stores no factors")
        if isinstance(rank, Fraction) and rank > 1:
            raise ValueError("a fractional rank is a share of min(p, q) and cannot be above 1")
        return rank


# ---- transform -------------------------------------------------------------------------------


class Normalize(Stage):
    """The matrix divided by scales of its own blocks before it is encoded, and back after."""

    kind: Literal["normalize"]
    by: Literal["absmax", "rms"] = Field(
        default="absmax",
        description="What each group is divided by: its largest magnitude or its root mean square.",
    )
    per: Literal["tensor", "row", "column", "block"] = Field(
        default="block",
        description="Which weights share a scale; a block is `block` consecutive weights of the "
        "matrix read row by row.",
    )
    block: int = Field(default=64, ge=2, le=65536, description="Weights of a block.")
    dtype: FloatType = Field(
        default="float32", description="Stored type of the scales (of the super-scales if bits)."
    )
    bits: int | None = Field(
        default=8,
        ge=2,
        le=8,
        description="Bits of a second level: scales become codes under a super-scale.",
    )
    superblock: int = Field(
        default=256, ge=2, le=65536, description="Scales that share a super-scale."
    )


class Hadamard(Stage):
    """The matrix rotated by blocks of a signed Hadamard matrix, which spreads its outliers.

    Weights of a rotated matrix are nearly normal with one deviation, so that one scale for the
    whole matrix and one codebook for the whole model fit (QuIP#). Nothing is stored for it.
    """

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


# ---- autoencoder -----------------------------------------------------------------------------


class Identity(Stage):
    """The latent is the matrix itself: e0 = p, e1 = q, e2 = 1."""

    kind: Literal["identity"] = "identity"


LARGEST_STRIDE = 7
"""The largest factor by which one stage of a decoder may enlarge its input."""


class Hnerv(Stage):
    """A convolutional autoencoder trained on the patches of the matrix (HNeRV; paper, section 3).

    The latent of each patch and the decoder's weights are stored, the encoder is not. One stage of
    the decoder enlarges by one prime factor of patch / latent, the largest factor first.
    """

    kind: Literal["hnerv"]
    patch: (
        Extent
        | Annotated[
            tuple[Extent, Extent], BeforeValidator(_as_tuple, json_schema_input_type=list[int])
        ]
    ) = Field(
        default=512,
        description="Rows and columns of a patch, or one number for both; a ragged edge is padded.",
    )
    latent: Annotated[
        tuple[Extent, Extent, Extent],
        BeforeValidator(_as_tuple, json_schema_input_type=list[Extent]),
    ] = Field(
        default=(16, 16, 16), description="Channels, rows and columns of the latent of one patch."
    )
    decoder_params: Whole | None = Field(
        default=None,
        ge=1,
        le=10**10,
        description="The paper's c: parameters of decoder and latents of a matrix together (of the "
        "decoder alone if it is shared), for which the width is solved. Either this or `width`.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Channels of the decoder's first stage. Either this or `decoder_params`.",
    )
    decoder: str | None = Field(
        default=None,
        min_length=1,
        description="A trained decoder that is used as it is: an archive of kind `decoder`, which "
        "says how it is built; only latents are learned and stored.",
    )
    decoder_bits: int = Field(
        default=6, ge=2, le=8, description="Bits of a weight of the decoder's convolutions."
    )
    qat: bool = Field(
        default=True,
        description="true: the decoder is trained with quantised weights (straight-through) in the "
        "second half of the epochs; false: it is rounded after training.",
    )
    reduce: Rational = Field(
        default=Fraction(6, 5), description="Each stage has so many times fewer channels."
    )
    min_width: int = Field(default=12, ge=1, le=65536, description="Least channels of a stage.")
    kernel_min: int = Field(default=1, ge=1, le=15, description="Kernel of the first stage, odd.")
    kernel_max: int = Field(
        default=5, ge=1, le=15, description="Kernels grow by 2 with each stage up to this, odd."
    )
    encoder_width: int = Field(
        default=64, ge=1, le=4096, description="Channels of the encoder, which is not stored."
    )
    epochs: int = Field(
        default=2000, ge=1, le=10**6, description="Passes over all patches of the matrix."
    )
    lr: float = Field(
        default=1e-3, gt=0, le=1, description="Largest learning rate of Adam; cosine schedule."
    )
    batch: int = Field(default=2, ge=1, le=65536, description="Patches of one training step.")

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @property
    def strides(self) -> tuple[int, ...]:
        """Factors of the decoder's stages: the primes of patch / latent, the largest first."""
        ratio, factors, prime = self.patch_shape[0] // self.latent[1], [], 2
        while ratio > 1:
            if ratio % prime:
                prime += 1
            else:
                factors.append(prime)
                ratio //= prime
        return tuple(reversed(factors))

    @model_validator(mode="after")
    def _stages_exist(self) -> Hnerv:
        (high, wide), (_, rows, columns) = self.patch_shape, self.latent
        if high % rows or wide % columns or high // rows != wide // columns or high == rows:
            raise ValueError(
                f"a patch of {high} x {wide} cannot come from a latent of {rows} x {columns}: rows "
                "and columns must grow by the same whole factor above 1"
            )
        if self.strides[0] > LARGEST_STRIDE:
            raise ValueError(
                f"patch / latent is {high // rows}, and its prime factor {self.strides[0]} is more "
                f"than one stage can enlarge by; use factors up to {LARGEST_STRIDE}"
            )
        return self

    @model_validator(mode="after")
    def _size_known(self) -> Hnerv:
        if self.decoder is not None and self.decoder_params is not None:
            raise ValueError("a trained `decoder` has its size already: leave out `decoder_params`")
        if self.decoder is None and (self.decoder_params is None) == (self.width is None):
            raise ValueError("the decoder's size is wanted once: `decoder_params` or `width`")
        if not 1 <= self.reduce <= 16:
            raise ValueError("reduce must lie between 1 and 16")
        if self.kernel_min % 2 == 0 or self.kernel_max % 2 == 0:
            raise ValueError("kernels must be odd, so that a convolution keeps rows and columns")
        if self.kernel_max < self.kernel_min:
            raise ValueError("kernel_max is below kernel_min")
        return self


# ---- permutation -----------------------------------------------------------------------------


class NoPermutation(Stage):
    """Columns stay where they are."""

    kind: Literal["none"] = "none"


class NearestPermutation(Stage):
    """Columns reordered so that each is followed by its nearest unplaced one (Algorithm 1)."""

    kind: Literal["nearest"]
    rows: int | Literal["all"] = Field(
        default=128,
        description="Rows that share one order; `all`: one order for the whole matrix.",
    )

    @field_validator("rows")
    @classmethod
    def _rows_positive(cls, rows: int | str) -> int | str:
        if isinstance(rows, int) and rows < 1:
            raise ValueError("rows must be at least 1, or `all`")
        return rows


# ---- scales ----------------------------------------------------------------------------------


class NoScales(Stage):
    """The quantiser sees the latent as it is."""

    kind: Literal["none"] = "none"


class _Scales(Stage):
    """What the three kinds of scales share."""

    kind: str  # narrowed by each kind; here so that it comes first
    per: Literal["tensor", "row", "column", "block"] = Field(
        default="block",
        description="Which weights share a scale; a block is `block` consecutive weights of the "
        "matrix read row by row.",
    )
    block: int = Field(default=64, ge=2, le=65536, description="Weights of a block.")
    dtype: FloatType = Field(
        default="float32", description="Stored type of the scales (of the super-scales if bits)."
    )
    bits: int | None = Field(
        default=None,
        ge=2,
        le=8,
        description="Bits of a second level: scales become codes under a super-scale.",
    )
    superblock: int = Field(
        default=256, ge=2, le=65536, description="Scales that share a super-scale."
    )


class RmsScales(_Scales):
    """s = root mean square of the group."""

    kind: Literal["rms"]


class AbsmaxScales(_Scales):
    """s = largest magnitude of the group (NF normalisation, QLoRA and LQ-LoRA)."""

    kind: Literal["absmax"]


class MinmaxScales(_Scales):
    """s = max - min with zero point z = min of the group: the quantiser sees [0, 1]."""

    kind: Literal["minmax"]


# ---- quantizer -------------------------------------------------------------------------------


class NoQuantizer(Stage):
    """Latents stored as numbers."""

    kind: Literal["none"] = "none"
    dtype: Literal["source", "float32", "float16", "bfloat16"] = Field(
        default="source", description="Stored type; `source` is the checkpoint's own."
    )


class UniformQuantizer(Stage):
    """Evenly spaced levels: 2^bits over [-1, 1], or over [0, 1] under `minmax` scales."""

    kind: Literal["uniform"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")


class NormalFloatQuantizer(Stage):
    """NF-b: quantiles of the normal distribution on [-1, 1] with an exact 0 (QLoRA)."""

    kind: Literal["normal_float"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")


class VectorQuantizer(Stage):
    """k-means codebook of 2^(bits x dim) codewords of dimension dim (paper, section 3)."""

    kind: Literal["vq"]
    bits: Rational = Field(description="Bits per weight b; b x dim must be an integer up to 16.")
    dim: int = Field(ge=1, le=16, description="Dimension d of the vectors.")
    axis: Literal["rows", "cols"] = Field(
        default="rows",
        description="rows: a vector is dim consecutive rows of one column; cols: dim consecutive "
        "columns of one row.",
    )
    dtype: FloatType = Field(default="float16", description="Stored type of the codebook.")
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
                f"bits x dim is {_plain_number(_as_fraction(product))}; "  # type: ignore[arg-type]
                "it must be an integer from 1 to 16"
            )
        return self


class TrellisQuantizer(Stage):
    """Trellis-coded quantiser: a weight's value is looked up by its own code and those before it.

    A row is one sequence; the last `memory` bits of its codes are the state that picks the value
    from a learned table, and the codes of a row are chosen together (Viterbi; QTIP's bit-shift
    trellis). Of all quantisers here it has the least error at equal bits.
    """

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


# ---- the plan of one matrix ------------------------------------------------------------------

Residual = Annotated[NoResidual | LowRank, Field(discriminator="kind")]
Transform = Annotated[Normalize | Hadamard, Field(discriminator="kind")]
Autoencoder = Annotated[Identity | Hnerv, Field(discriminator="kind")]
Permutation = Annotated[NoPermutation | NearestPermutation, Field(discriminator="kind")]
Scales = Annotated[NoScales | RmsScales | AbsmaxScales | MinmaxScales, Field(discriminator="kind")]
Quantizer = Annotated[
    NoQuantizer | UniformQuantizer | NormalFloatQuantizer | VectorQuantizer | TrellisQuantizer,
    Field(discriminator="kind"),
]


class MatrixPlan(Stage):
    """Everything that decides how one matrix is stored, and so how large it is."""

    residual: Residual = NoResidual()
    transform: Annotated[
        tuple[Transform, ...],
        BeforeValidator(_as_tuple, json_schema_input_type=list[Transform]),
    ] = Field(default=(), description="Transforms of the matrix before it is encoded, in order.")
    autoencoder: Autoencoder = Identity()
    permutation: Permutation = NoPermutation()
    scales: Scales = NoScales()
    quantizer: Quantizer = NoQuantizer()
    rounding: Literal["nearest"] = "nearest"
    dora: bool = Field(
        default=False, description="Store a float16 magnitude for each output row (DoRA)."
    )
    share: str | None = Field(
        default=None,
        min_length=1,
        description="Name of a group of matrices that store one codebook or decoder together.",
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> MatrixPlan:
        if (
            self.share is not None
            and self.quantizer.kind not in ("vq", "trellis")
            and self.autoencoder.kind != "hnerv"
        ):
            raise ValueError(
                "`share` needs something to share: a `vq` or `trellis` quantizer or a decoder"
            )
        if self.quantizer.kind == "trellis" and self.autoencoder.kind == "hnerv":
            raise ValueError(
                "`trellis` codes are not learned while an autoencoder is trained; use `vq`"
            )
        if self.scales.kind == "minmax" and self.quantizer.kind == "normal_float":
            raise ValueError(
                "`normal_float` levels lie on [-1, 1]; use `absmax` scales, or `uniform` "
                "with `minmax`"
            )
        if self.scales.kind == "none" and self.quantizer.kind in ("uniform", "normal_float"):
            raise ValueError(
                f"`{self.quantizer.kind}` levels lie on [-1, 1] and need scales: use `absmax`"
            )
        kinds = [transform.kind for transform in self.transform]
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind of transform can stand in the list once")
        return self

    @model_validator(mode="after")
    def _trained_once(self) -> MatrixPlan:
        residual = self.residual
        if self.autoencoder.kind == "identity":
            return self
        if self.share is not None and self.autoencoder.decoder is not None:
            raise ValueError("a trained `decoder` is shared as it is: leave out `share`")
        if residual.kind == "none":
            return self
        if residual.fit == "alternating" or residual.order == "quantizer_first":
            raise ValueError(
                f"`{self.autoencoder.kind}` is trained once, on what the residual leaves: use "
                "`fit: svd` or `zero` and `order: residual_first`"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """The plan as plain data, each field written out: what an archive stores."""
        return self.model_dump(mode="json")
