"""Parameters of a quantized cache of keys and values: what a model keeps of the tokens before.

Tokens are coded in pages of equal length, once they are older than the window. A page of one
sequence in one layer is a matrix for the keys and one for the values, coded by the scales and the
quantizers that code weights.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from reallm_compiler.stages.base import Stage
from reallm_compiler.stages.one_kind import OneKindOf
from reallm_compiler.stages.plan import MatrixPlan
from reallm_compiler.stages.quantizer import QuantizerStage
from reallm_compiler.stages.registry import kind_name, kinds
from reallm_compiler.stages.scales import ScalesStage


class CachedStates(Stage):
    """How the keys, or the values, of a page are coded."""

    rows: Literal["channels", "tokens"] = Field(
        description="What a row of a page's matrix is: a channel of a head over the tokens of the "
        "page, or a token over the channels of a head. Blocks of scales lie along it."
    )
    hadamard: bool = Field(
        default=False,
        description="Mix the channels of each head by a signed Hadamard matrix before.",
    )
    scales: Annotated[ScalesStage, OneKindOf("scales")] = Field(
        description="Scales of a page's matrix."
    )
    quantizer: Annotated[QuantizerStage, OneKindOf("quantizer")] = Field(
        description="Its quantizer: `uniform`, `normal_float`, `vq` or `e8p`."
    )

    @cached_property
    def plan(self) -> MatrixPlan:
        """The plan of a page's matrix."""
        return MatrixPlan(scales=self.scales, quantizer=self.quantizer)

    @field_validator("quantizer")
    @classmethod
    def _codes_at_once(cls, quantizer: QuantizerStage) -> QuantizerStage:
        if not quantizer.codes_caches:
            known = [name for name, kind in kinds("quantizer").items() if kind.codes_caches]  # type: ignore[attr-defined]
            raise ValueError(
                f"`{kind_name(type(quantizer))}` does not code while a model runs; use "
                f"{', '.join(f'`{name}`' for name in known)}"
            )
        return quantizer

    @field_validator("scales")
    @classmethod
    def _measured_here(cls, scales: ScalesStage) -> ScalesStage:
        if scales.needs_statistics:
            raise ValueError("a cache has no measured inputs: use `clip: weights` or `none`")
        return scales

    @model_validator(mode="after")
    def _stages_fit(self) -> CachedStates:
        try:
            self.plan  # noqa: B018 - its own checks
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
        return self


class CachedKeys(CachedStates):
    """How the keys of a page are coded."""

    rows: Literal["channels", "tokens"] = Field(
        default="channels", description=CachedStates.model_fields["rows"].description
    )
    rotary: Literal["before", "after"] = Field(
        default="before",
        description="Code keys as they are before the rotary position embedding, or after it. "
        "`before` turns the keys of a page back to the position of its first token, and forth when "
        "they are read; without effect in models that have none.",
    )


class CachedValues(CachedStates):
    """How the values of a page are coded."""

    rows: Literal["channels", "tokens"] = Field(
        default="tokens", description=CachedStates.model_fields["rows"].description
    )


class KvCache(Stage):
    """A quantized cache of keys and values."""

    page: int = Field(
        default=32, ge=8, le=4096, description="Tokens that are coded together, a multiple of 8."
    )
    window: int = Field(
        default=32,
        ge=0,
        le=1 << 20,
        description="Most recent tokens that are kept as they are, at least; up to a page more "
        "until that is full.",
    )
    first: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="First tokens of a sequence that are kept as they are: many models attend to "
        "these all the time.",
    )
    keys: CachedKeys = Field(description="How keys are coded.")
    values: CachedValues = Field(description="How values are coded.")

    @property
    def states(self) -> dict[str, CachedStates]:
        """Both, by name."""
        return {"keys": self.keys, "values": self.values}

    @field_validator("page")
    @classmethod
    def _whole_bytes(cls, page: int) -> int:
        if page % 8:
            raise ValueError("a page must have a multiple of 8 tokens")
        return page
