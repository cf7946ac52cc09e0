"""What may stand in a recipe's `finetune` section: the settings of a tuning run.

The defaults are the paper's (section 4, and its released code). Models of a few million weights
want learning rates a hundred times larger than those, which were chosen for the factors of 7 to 13
billion. Other numbers are learned in units of their own root mean square, with a rate of their own.
The same models check the settings that a command or a program gives for one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.messages import Loc, problems_of
from reallm_compiler.recipe.nodes import MAX_INTEGER, MapNode, to_plain
from reallm_compiler.recipe.vocabulary import keys_of, nearest, suggestion
from reallm_compiler.stages.base import as_tuple

SECTION = "finetune"
"""The section's key in a recipe."""

Stage: TypeAlias = Literal["block", "e2e"]

Learn: TypeAlias = Literal[
    "factors", "gains", "rows", "columns", "scales", "tables", "norms", "biases"
]

DEFAULT_LEARN: tuple[Learn, ...] = ("factors", "gains")

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Beta, Beta], BeforeValidator(as_tuple, json_schema_input_type=tuple[Beta, Beta])
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BlockOptions(_Settings):
    """Block-wise tuning: each block follows the original block on what reaches it."""

    batch: int = Field(default=32, ge=1, le=65536, description="Sequences per backward pass.")
    accumulation: int = Field(
        default=1, ge=1, le=65536, description="Backward passes per step (gradient accumulation)."
    )
    lr: float = Field(default=1e-5, gt=0, le=1, description="Learning rate of Adam.")
    betas: Betas = Field(default=(0.9, 0.95), description="Adam's betas, below 1.")
    epochs: int = Field(
        default=50, ge=1, le=100000, description="Largest number of passes over the text."
    )
    patience: int = Field(
        default=3,
        ge=1,
        le=100000,
        description="Passes without a better held-out error before it stops.",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate schedule over all passes."
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Fraction of warm-up steps.")
    sequences: int = Field(
        default=1024, ge=1, le=MAX_INTEGER, description="Sequences of the text that are used."
    )


class EndToEndOptions(_Settings):
    """End-to-end tuning of all blocks at once."""

    loss: Literal["next_token", "distill"] = Field(
        default="next_token",
        description="next_token: cross-entropy of the text; distill: KL from the original.",
    )
    batch: int = Field(default=1, ge=1, le=65536, description="Sequences per backward pass.")
    accumulation: int = Field(
        default=32, ge=1, le=65536, description="Backward passes per step (gradient accumulation)."
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Largest learning rate of Adam; by default 2e-5 where factors or gains of DoRA "
        "are learned, else 2e-3.",
    )
    betas: Betas = Field(default=(0.9, 0.95), description="Adam's betas, below 1.")
    epochs: float = Field(default=0.5, gt=0, le=100000, description="Passes over the text.")
    steps: int | None = Field(
        default=None, ge=1, le=MAX_INTEGER, description="Steps, instead of `epochs`."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="Learning rate schedule."
    )
    warmup: float = Field(default=0.03, ge=0, lt=1, description="Fraction of warm-up steps.")
    checks: int = Field(
        default=10,
        ge=0,
        le=100000,
        description="Evaluations of the held-out loss; the best state is kept.",
    )


class FinetuneOptions(_Settings):
    """All settings that decide the bytes of an adapter."""

    stages: Annotated[
        tuple[Stage, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Stage])
    ] = Field(default=("block", "e2e"), description="Stages to run; `--stage` on the command line.")
    window: int | None = Field(
        default=None,
        ge=2,
        le=MAX_INTEGER,
        description="Tokens per sequence; by default 2048, or the model's positions.",
    )
    separator: str | None = Field(
        default=None, description="Split the text into documents here, each after one BOS."
    )
    held_out: int = Field(
        default=64,
        ge=1,
        le=MAX_INTEGER,
        description="Sequences held out for early stopping; a tenth of all at most.",
    )
    seed: int = Field(
        default=0, ge=0, le=MAX_INTEGER, description="Seed of the order of the sequences."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the computation; tuned parameters are float32."
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Threads on the CPU; they affect the result.",
    )
    checkpointing: bool = Field(
        default=False,
        description="End to end: recompute activations instead of keeping them (gradient "
        "checkpointing).",
    )
    factors: Literal["float32", "float16", "bfloat16", "int8"] | None = Field(
        default=None, description="Stored type of the factors; by default that of the archive."
    )
    learn: Annotated[
        tuple[Learn, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Learn])
    ] = Field(
        default=DEFAULT_LEARN,
        description="What is tuned: low-rank factors and gains that are there, `rows` and "
        "`columns` (a gain for each, in every matrix), scales, tables (codebooks), norms, biases.",
    )
    block: BlockOptions = Field(
        default=BlockOptions(), description="Settings of block-wise tuning."
    )
    e2e: EndToEndOptions = Field(
        default=EndToEndOptions(), description="Settings of end-to-end tuning."
    )

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not stages or len(set(stages)) < len(stages):
            raise ValueError("give `block`, `e2e` or both, each once")
        return tuple(stage for stage in ("block", "e2e") if stage in stages)

    @field_validator("learn")
    @classmethod
    def _learn_in_order(cls, learn: tuple[Learn, ...]) -> tuple[Learn, ...]:
        if not learn or len(set(learn)) < len(learn):
            raise ValueError("name what is to be learned, each once")
        return tuple(word for word in get_args(Learn) if word in learn)

    def resolved(self) -> FinetuneOptions:
        """With the learning rate that goes with what is learned where none is given."""
        if self.e2e.lr is not None:
            return self
        lr = 2e-5 if set(self.learn) & set(DEFAULT_LEARN) else 2e-3
        return self.model_copy(update={"e2e": self.e2e.model_copy(update={"lr": lr})})

    def plain(self) -> dict[str, Any]:
        """All settings as plain data: what an adapter stores."""
        return self.model_dump(mode="json")

    def set_fields(self) -> dict[str, Any]:
        """Only what was set, as plain data: what a recipe's document stores."""
        return self.model_dump(mode="json", exclude_unset=True)


GROUPS: Mapping[str, type[BaseModel]] = {"block": BlockOptions, "e2e": EndToEndOptions}
"""The groups of settings, by key."""


def check_settings(tree: MapNode) -> tuple[FinetuneOptions | None, list[Problem]]:
    """The settings of a tree, or what is wrong with it."""
    try:
        return FinetuneOptions.model_validate(to_plain(tree)), []
    except ValidationError as error:
        return None, problems_of(error, tree, unknown_setting)


def unknown_setting(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    """Message and hint for a key that is no setting at `loc`, counted from the section."""
    message = f"unknown key `{key}`"
    model = GROUPS.get(str(loc[0]), FinetuneOptions) if loc else FinetuneOptions
    if near := nearest(key, keys_of(model)):
        return message, f"did you mean `{near}`?"
    homes = [f"`{SECTION}.{group}`" for group, other in GROUPS.items() if key in keys_of(other)]
    homes += [f"`{SECTION}`"] if key in keys_of(FinetuneOptions) else []
    if homes:
        return message, f"it belongs under {' or '.join(homes)}"
    return message, suggestion(key, keys_of(model))
