"""Parameters of the residual: what is kept in high precision, and tuned later."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from reallm_compiler.stages.base import FloatType, Rational, Stage


class ResidualStage(Stage):
    """Base of the kinds of residual.

    Attributes:
        factored: it is a product of factors R = L1 L2, which tuning changes and adapters replace.
        refined: its stored values are fitted once more to what the coded part leaves.
        stored: it keeps something; a plan has no residual that does not.
    """

    stored: ClassVar[bool] = True
    factored: ClassVar[bool] = False
    refined: ClassVar[bool] = False

    @property
    def first(self) -> bool:
        """Whether the residual sees the matrix before the quantizer does."""
        return True

    @property
    def rounds(self) -> int:
        """How often residual and coded part are fitted in turn, at most; 1: each once."""
        return 1


class NoResidual(ResidualStage):
    """No residual: the coded part is the whole matrix."""

    stored: ClassVar[bool] = False

    kind: Literal["none"] = "none"


class LowRank(ResidualStage):
    """A product of two factors, R = L1 L2 with L1 [p, r] and L2 [r, q] (paper, section 3)."""

    factored: ClassVar[bool] = True

    kind: Literal["low_rank"]
    rank: Rational = Field(
        description="Rank r: an integer, or a fraction of min(p, q) such as 1/64; "
        "never above min(p, q).",
    )
    fit: Literal["svd", "alternating", "zero"] = Field(
        default="svd",
        description="svd: one truncated SVD; alternating: SVD and quantizer in turn until the "
        "error rises (LQ-LoRA, LoftQ); zero: L1 = 0, L2 random (QLoRA).",
    )
    order: Literal["residual_first", "quantizer_first"] = Field(
        default="residual_first",
        description="Which part is fitted to the whole matrix first: the residual (LQ-LoRA) or the "
        "quantizer (LoftQ).",
    )
    iterations: int = Field(
        default=100, ge=1, le=1000, description="Most iterations of the alternating loop."
    )
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float16",
        description="Stored type of the factors; int8 adds one float16 scale for each column of "
        "L1 and each row of L2.",
    )

    metric: Literal["weights", "inputs", "fisher"] = Field(
        default="weights",
        description="What the factors make small: weights: the error of the weights; inputs: that "
        "of the outputs W x, by measured statistics of the inputs; fisher: that of the weights, "
        "each row and each column weighed by its part in the loss (LQ-LoRA).",
    )

    @property
    def needs_statistics(self) -> bool:
        """Whether the factors are fitted in a metric that was measured."""
        return self.metric != "weights"

    @property
    def first(self) -> bool:
        """Whether the residual sees the matrix before the quantizer does."""
        return self.order == "residual_first"

    @property
    def rounds(self) -> int:
        """How often residual and coded part are fitted in turn, at most."""
        return self.iterations if self.fit == "alternating" else 1

    @model_validator(mode="after")
    def _fit_follows_the_metric(self) -> LowRank:
        if self.fit == "zero" and self.metric != "weights":
            raise ValueError("`fit: zero` fits nothing: leave out `metric`")
        return self

    @field_validator("rank")
    @classmethod
    def _rank_in_range(cls, rank: int | Fraction) -> int | Fraction:
        if rank <= 0:
            raise ValueError("the rank must be above 0; `residual: {kind: none}` stores no factors")
        if isinstance(rank, Fraction) and rank > 1:
            raise ValueError("a fractional rank is a share of min(p, q) and cannot be above 1")
        return rank


class Sparse(ResidualStage):
    """A fixed share of the weights, the outliers, kept as numbers beside the codes (SpQR).

    They are taken out before the rest is coded. Afterwards their values are set to what brings the
    error to its least, so that a kept weight is exact where errors of single weights count.
    """

    refined: ClassVar[bool] = True

    kind: Literal["sparse"]
    fraction: Rational = Field(
        description="Share of the weights of each block of rows that is kept, rounded down, at "
        "least one weight."
    )
    rows: int | Literal["all"] = Field(
        default="all", description="Rows of a block; `all`: the whole matrix is one block."
    )
    by: Literal["magnitude", "gram", "hessian", "leave_one_out"] = Field(
        default="magnitude",
        description="What is kept: the largest w^2 (magnitude), w^2 H_jj (gram) or "
        "w^2 / [H^-1]_jj (hessian), with H the Gram matrix of the inputs; or the weights without "
        "which their group is coded best (leave_one_out, SpQR's rule).",
    )
    group: int = Field(
        default=16, ge=2, le=4096, description="Weights of a group, for leave_one_out."
    )
    bits: int = Field(
        default=3, ge=1, le=8, description="Bits of a weight in its group, for leave_one_out."
    )
    dtype: FloatType = Field(default="float16", description="Stored type of the values.")

    @property
    def needs_statistics(self) -> bool:
        """Whether the outliers are picked by statistics of the inputs."""
        return self.by != "magnitude"

    @field_validator("fraction")
    @classmethod
    def _fraction_in_range(cls, fraction: int | Fraction) -> int | Fraction:
        if not 0 < fraction <= 1:
            raise ValueError("the fraction of kept weights must be above 0, and at most 1")
        return fraction

    @field_validator("rows")
    @classmethod
    def _rows_in_range(cls, rows: int | str) -> int | str:
        if isinstance(rows, int) and not 1 <= rows <= 2**31 - 1:
            raise ValueError("rows must be an integer from 1 on, or `all`")
        return rows


class Monarch(ResidualStage):
    """A product of two block-diagonal matrices with a fixed permutation between them.

    As many numbers as a low-rank part of rank `blocks`, but of full rank. It is the nearest such
    product, found without data (Monarch, Dao et al. 2022, a form of butterfly matrices).
    """

    kind: Literal["monarch"]
    blocks: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Blocks k of each factor, k (p + q) numbers in all; the root of min(p, q) "
        "without it.",
    )
    dtype: Literal["int8", FloatType] = Field(
        default="float16",
        description="Stored type of the factors; int8 adds two float16 scales for each of the "
        "k x k blocks of the matrix.",
    )
