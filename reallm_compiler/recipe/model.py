"""What may stand in a recipe (the forms), and what a checked recipe is (Recipe and Rule).

The forms are pydantic models: they fix keys and types, and the JSON Schema is made from them.
A `Recipe` is what remains when everything was found right; its nodes still know their lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reallm_compiler.recipe.match import LayerRange, Pattern, parse_layers
from reallm_compiler.recipe.nodes import MAX_INTEGER, Location, MapNode
from reallm_compiler.recipe.tuning import FinetuneOptions
from reallm_compiler.stages import BlockFit, MatrixPlan, Prepare, PrepareStage, Rational

Keep: TypeAlias = Literal["source", "bfloat16", "float16", "float32"]
Role: TypeAlias = Literal["linear", "embedding", "head", "router"]
"""What a matrix is for, as far as a rule can ask for it; `sources.linear` derives it from names."""

KEEP_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _as_list(value: object) -> object:
    if not isinstance(value, str | list):
        raise ValueError("expected a pattern or a list of patterns")
    return [value] if isinstance(value, str) else value


def _checked_pattern(value: str) -> str:
    return Pattern(value).text


def _canonical_layers(value: object) -> str:
    return ",".join(str(one) for one in parse_layers(value))


def _positive_fraction(value: int | Fraction) -> int | Fraction:
    if not 0 < value <= 1:
        raise ValueError("expected a fraction above 0 and up to 1, such as 1/100")
    return value


def _canonical_keep(value: object) -> object:
    return KEEP_ALIASES.get(value, value) if isinstance(value, str) else value


PatternText = Annotated[str, AfterValidator(_checked_pattern)]
PatternList = Annotated[
    list[PatternText],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
RoleList = Annotated[
    list[Role],
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Role | list[Role],
    ),
    Field(min_length=1),
]
PositiveFraction = Annotated[Rational, AfterValidator(_positive_fraction)]
LayerText = Annotated[
    str,
    BeforeValidator(_canonical_layers, json_schema_input_type=int | str | list[int | str]),
]
KeepWord = Annotated[
    Keep,
    BeforeValidator(
        _canonical_keep,
        json_schema_input_type=Literal[
            "source", "bfloat16", "float16", "float32", "bf16", "fp16", "fp32"
        ],
    ),
]


class Form(BaseModel):
    """Base of the forms: closed, strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RuleForm(Form):
    """A rule: which matrices, and what is different for them."""

    match: PatternList | None = Field(
        default=None,
        description="Names of tensors without `.weight`: a glob in which `*` also crosses dots, "
        "or `re:` and a regular expression for the whole name; a list takes any of its patterns. "
        "Required, but where `role` selects the matrices.",
    )
    role: RoleList | None = Field(
        default=None,
        description="Only matrices that are for this, or one of these: the weights of linear "
        "layers, tables of tokens or positions, the last layer, the gates of experts.",
    )
    min_fraction: PositiveFraction | None = Field(
        default=None,
        description="Only matrices that hold at least this fraction of all matrices' weights.",
    )
    min_numel: int | None = Field(
        default=None, ge=1, le=2**63 - 1, description="Only matrices of at least so many weights."
    )
    except_: PatternList | None = Field(
        default=None, alias="except", description="Patterns that are excluded."
    )
    layers: LayerText | None = Field(
        default=None,
        description="Only these layers: `3`, `0-3`, `2..`, `-4..`, or a list; both ends are "
        "included, negative numbers count from the end.",
    )
    set: dict[str, Any] | None = Field(
        default=None, description="A part of a matrix plan, put over what was set before."
    )
    keep: KeepWord | None = Field(
        default=None, description="Store the tensor uncoded, in its own type or in the named one."
    )
    optional: bool = Field(
        default=False, description="A rule that matches nothing is an error unless this is true."
    )
    note: str | None = Field(default=None, description="Free text; changes nothing.")

    @model_validator(mode="after")
    def _says_which(self) -> RuleForm:
        if self.match is None and self.role is None:
            raise ValueError("`match` is missing: it selects the tensors of the rule")
        return self

    @model_validator(mode="after")
    def _one_action(self) -> RuleForm:
        if (self.set is None) == (self.keep is None):
            many = "both" if self.set is not None else "neither"
            raise ValueError(f"a rule has either `set` or `keep`; this one has {many}")
        return self


class ShapesForm(Form):
    """A model of which only the shapes are known."""

    shapes: dict[str, list[int]] = Field(
        min_length=1, description="Extents of each tensor, by its name."
    )
    dtype: str | None = Field(default=None, description="Their type; float16 by default.")


class RecipeForm(Form):
    """A recipe file."""

    reallm: Literal[1] = Field(description="Version of the recipe language.")
    model: str | ShapesForm | None = Field(
        default=None,
        description="Checkpoint folder or hub id; may be given on the command line instead. For a "
        "budget also a bare config.json, or `{shapes: {NAME: [p, q]}}`.",
    )
    output: str | None = Field(
        default=None, description="File to write; may be given on the command line instead."
    )
    seed: int = Field(default=0, ge=0, le=MAX_INTEGER, description="Seed of all random choices.")
    extends: str | None = Field(
        default=None,
        min_length=1,
        description="A shipped recipe, or a recipe file relative to this one; what follows is put "
        "over it, and its rules come first.",
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="The plan of every matrix that no rule changes."
    )
    rules: list[RuleForm] = Field(
        default_factory=list, description="Ordered patches: a later rule wins, field by field."
    )
    statistics: Literal["none", "required"] = Field(
        default="none",
        description="Whether a compile needs a file of statistics that `reallm calibrate` measured "
        "on the model, as some kinds do.",
    )
    prepare: Prepare = Field(
        default=(),
        description="What is done to the whole model before any matrix is coded, in order; the "
        "model computes what it did before.",
    )
    fit: BlockFit | None = Field(
        default=None,
        description="What may learn while blocks of the model are coded, by a text (`compile "
        "--text`).",
    )
    finetune: FinetuneOptions = Field(
        default_factory=FinetuneOptions,
        description="Settings of `reallm finetune` on the archive; they change no matrix.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A checked rule.

    Attributes:
        match: patterns, any of which may match.
        roles: what a matrix may be for; None for all tensors.
        min_fraction: the least fraction of all matrices' weights that a matrix must hold; None
            for all tensors.
        min_numel: the least number of weights that a matrix must have; None for all tensors.
        exceptions: patterns that are taken out again.
        layers: ranges of layers, or None for all tensors whether in a layer or not.
        patch: the fields that the rule sets, with their locations; None for a `keep` rule.
        keep: the type to keep a tensor in; None for a `set` rule.
        optional: whether the rule may match nothing.
        note: free text.
        location: where the rule starts.
        key_locations: where the values of its keys are written.
        path: the rule's path in its own file, such as `rules[2]`.
    """

    match: tuple[Pattern, ...]
    roles: tuple[Role, ...] | None
    min_fraction: int | Fraction | None
    min_numel: int | None
    exceptions: tuple[Pattern, ...]
    layers: tuple[LayerRange, ...] | None
    patch: MapNode | None
    keep: Keep | None
    optional: bool
    note: str | None
    location: Location
    key_locations: Mapping[str, Location]
    path: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe, everything it extends included.

    Attributes:
        name: a shipped recipe's name, a file's stem, or `recipe`.
        model: the recipe's `model`, as written; None if it has none.
        output: the file to write, as written; None if the recipe has none.
        seed: seed of all random choices.
        plan: the plan of a matrix that no rule changes.
        tree: the same with the location of each field.
        rules: the rules of the extended recipes first, then its own.
        statistics: `required` if a compile needs measured statistics, else `none`.
        prepare: what is done to the whole model before any matrix is coded, in order.
        fit: what learns while matrices are coded; None if nothing does.
        fit_at: where that is written.
        finetune: what the recipe sets of tuning, as plain data; empty if it sets nothing.
        document: plain data with all of this, without model and output; it holds every
            field of the defaults, so that an archive does not depend on later defaults.
        files: the recipe files that were read, the extended ones first.
    """

    name: str
    model: str | Mapping[str, Any] | None
    output: str | None
    seed: int
    plan: MatrixPlan
    tree: MapNode
    rules: tuple[Rule, ...]
    statistics: Literal["none", "required"]
    prepare: tuple[PrepareStage, ...] = ()
    fit: BlockFit | None = None
    fit_at: Location | None = None
    finetune: Mapping[str, Any]
    document: Mapping[str, Any]
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, {len(self.rules)} rules)"

    @property
    def defaults(self) -> dict[str, Any]:
        """The plan of a matrix that no rule changes, as plain data."""
        return self.plan.plain()
