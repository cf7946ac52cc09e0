"""Parameters of what learns while matrices are coded, block by block."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from reallm_compiler.stages.base import Stage, as_tuple

Learnable: TypeAlias = Literal[
    "rounding",
    "clip",
    "scales",
    "channel_scale",
    "codebooks",
    "factors",
    "magnitudes",
    "norms",
]

FOLLOWED: tuple[Learnable, ...] = ("rounding", "clip")
"""Entries of `learn` by which codes are made anew in each step: they decide which code a weight
gets."""

Rate = Annotated[float, Field(gt=0, le=1)]


class BlockFit(Stage):
    """Blocks of the model are coded in order, and what `learn` names follows the original.

    The coded block is given what the coded blocks before it make of a text, and follows what the
    block of the original makes there in the original model: the mean squared error of its output
    is lowered. Of all epochs, the state before the first included, the one with the least error is
    kept.
    """

    kind: Literal["block"]
    learn: Annotated[
        tuple[Learnable, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Learnable])
    ] = Field(
        description="What may change. `rounding`: whether a weight is rounded up or down, by an "
        "offset of at most half a step (AutoRound); `clip`: how much of each group's range the "
        "levels reach (OmniQuant's LWC): with either, codes are made anew in each step, else they "
        "are held. `scales`, `codebooks`, `factors`, `magnitudes`: the stored numbers of these "
        "stages; `channel_scale`: those of transforms, such as the factors of columns "
        "(OmniQuant's LET); `norms`: the gains of the block's norms.",
    )
    epochs: int = Field(default=20, ge=1, le=100000, description="Passes over the samples.")
    lr: Rate | dict[Learnable, Rate] = Field(
        default=1e-3,
        description="Learning rate, or one for each entry of `learn`. Of stored numbers it is in "
        "units of their root mean square, of offsets in steps, of `clip` in parts of the range.",
    )
    batch: int = Field(default=8, ge=1, le=65536, description="Sequences per step.")
    samples: int = Field(
        default=128, ge=1, le=2**31, description="Sequences that are drawn from the text."
    )
    window: int | None = Field(
        default=None,
        ge=2,
        le=2**31,
        description="Tokens per sequence; by default 2048, or the model's positions.",
    )
    optimizer: Literal["adam", "sign"] = Field(
        default="adam", description="adam, or signs of the gradients alone (AutoRound)."
    )
    schedule: Literal["constant", "linear"] = Field(
        default="constant", description="The learning rate over all steps; linear goes down to 0."
    )

    @field_validator("learn")
    @classmethod
    def _in_order(cls, learn: tuple[Learnable, ...]) -> tuple[Learnable, ...]:
        if len(set(learn)) < len(learn):
            raise ValueError("name what may change, each once")
        if set(learn) & set(FOLLOWED) and "codebooks" in learn:
            raise ValueError("`codebooks` learn under held codes: leave out `rounding` and `clip`")
        if {"clip", "scales"} <= set(learn):
            raise ValueError("`clip` and `scales` decide the same numbers: take one of them")
        return tuple(learnable for learnable in get_args(Learnable) if learnable in learn)

    @model_validator(mode="after")
    def _rates_fit(self) -> BlockFit:
        if isinstance(self.lr, dict) and set(self.lr) != set(self.learn):
            names = ", ".join(f"`{name}`" for name in self.learn)
            raise ValueError(f"`lr` as a map needs a rate for each entry of `learn`: {names}")
        return self

    def rate(self, learnable: Learnable) -> float:
        """The learning rate of an entry of `learn`."""
        return self.lr[learnable] if isinstance(self.lr, dict) else self.lr


FIT_KINDS: tuple[type[Stage], ...] = (BlockFit,)
