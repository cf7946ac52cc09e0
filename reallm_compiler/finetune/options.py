"""Settings of a tuning run; the defaults are the paper's (section 4, and its released code).

Models of a few million weights want learning rates a hundred times larger than those of the paper,
which were chosen for 7 to 13 billion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from reallm_compiler.errors import FinetuneError

Stage = Literal["block", "e2e"]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class BlockOptions(_Options):
    """Block-wise tuning: each block follows the original block on what reaches it."""

    batch: int = Field(default=32, ge=1, le=65536, description="Sequences of one step.")
    lr: float = Field(default=1e-5, gt=0, le=1, description="Learning rate of Adam.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Adam's betas.")
    epochs: int = Field(default=50, ge=1, le=100000, description="Passes over the text at most.")
    patience: int = Field(
        default=3, ge=1, le=100000, description="Passes without a better held-out loss."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Course of the learning rate over all passes."
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Share of steps that warm up.")
    sequences: int = Field(
        default=1024, ge=1, description="Sequences of the text that are used at most."
    )


class EndToEndOptions(_Options):
    """End-to-end tuning of all blocks at once."""

    loss: Literal["next_token", "distill"] = Field(
        default="next_token",
        description="next_token: cross-entropy of the text; distill: KL from the original.",
    )
    batch: int = Field(default=1, ge=1, le=65536, description="Sequences of one backward pass.")
    accumulation: int = Field(default=32, ge=1, le=65536, description="Backward passes of a step.")
    lr: float = Field(default=2e-5, gt=0, le=1, description="Largest learning rate of Adam.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Adam's betas.")
    epochs: float = Field(default=0.5, gt=0, le=100000, description="Passes over the text.")
    steps: int | None = Field(default=None, ge=1, description="Steps, instead of `epochs`.")
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="Course of the learning rate."
    )
    warmup: float = Field(default=0.03, ge=0, lt=1, description="Share of steps that warm up.")
    checks: int = Field(
        default=10,
        ge=0,
        le=100000,
        description="Times that the held-out loss is taken; the best is kept.",
    )


class FinetuneOptions(_Options):
    """All settings that decide the bytes of an adapter."""

    stages: tuple[Stage, ...] = Field(default=("block", "e2e"), description="What is run.")
    window: int | None = Field(
        default=None, ge=2, description="Tokens of a sequence; by default 2048 or the positions."
    )
    separator: str | None = Field(
        default=None, description="Split the text into documents here, each after one BOS."
    )
    held_out: int = Field(
        default=64, ge=1, description="Sequences held out for early stopping; a tenth at most."
    )
    seed: int = Field(default=0, ge=0, description="Order of the sequences.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the computation; what is tuned is float32."
    )
    threads: int = Field(default=1, ge=1, le=1024, description="Threads on the CPU.")
    checkpointing: bool = Field(
        default=False, description="Compute activations again instead of keeping them (end to end)."
    )
    factors: Literal["float32", "float16", "bfloat16", "int8"] | None = Field(
        default=None, description="Stored type of the factors; by default that of the base."
    )
    block: BlockOptions = BlockOptions()
    e2e: EndToEndOptions = EndToEndOptions()

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not stages or len(set(stages)) < len(stages):
            raise ValueError("give `block`, `e2e` or both, each once")
        return tuple(stage for stage in ("block", "e2e") if stage in stages)

    def plain(self) -> dict[str, Any]:
        """The settings as plain data: what an adapter stores."""
        return self.model_dump(mode="json")


def options_from(plain: Mapping[str, Any] | None) -> FinetuneOptions:
    """Options from plain data.

    Raises:
        FinetuneError: a setting is unknown or out of range; names all that are.
    """
    try:
        return FinetuneOptions.model_validate(dict(plain or {}))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in problem['loc'])}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False)
        ]
        raise FinetuneError("the settings are wrong: " + "; ".join(wrong)) from None
