"""What may stand in a rule, and what a checked rule is: which matrices, and what they get."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reallm_compiler.recipe.match import LayerRange, Pattern, parse_layers, pattern_of
from reallm_compiler.recipe.nodes import Location, MapNode, Node, find
from reallm_compiler.stages import Rational
from reallm_compiler.stages.base import plain_number

Keep: TypeAlias = Literal["source", "bfloat16", "float16", "float32"]
Role: TypeAlias = Literal["linear", "embedding", "head", "router"]
"""What a matrix is for, as far as a rule can ask; `checkpoint.linear` derives it from names."""

KEEP_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _as_list(value: object) -> object:
    if not isinstance(value, str | list):
        raise ValueError("expected a pattern or a list of patterns")
    return [value] if isinstance(value, str) else value


def _checked_pattern(value: str) -> str:
    return pattern_of(value).text


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

    def document(self) -> dict[str, Any]:
        """The rule as canonical plain data: only what it sets, always in the same self."""
        document: dict[str, Any] = {}
        if self.match is not None:
            document["match"] = list(self.match)
        if self.role is not None:
            document["role"] = list(self.role)
        if self.min_fraction is not None:
            document["min_fraction"] = plain_number(self.min_fraction)
        if self.min_numel is not None:
            document["min_numel"] = self.min_numel
        if self.except_ is not None:
            document["except"] = list(self.except_)
        if self.layers is not None:
            document["layers"] = self.layers
        if self.set is not None:
            document["set"] = self.set
        if self.keep is not None:
            document["keep"] = self.keep
        if self.optional:
            document["optional"] = True
        if self.note is not None:
            document["note"] = self.note
        return document


@dataclass(kw_only=True, slots=True)
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
        said: the patch as text, the same for rules that set the same; None for a `keep` rule.
        keep: the type to keep a tensor in; None for a `set` rule.
        optional: whether the rule may match nothing.
        note: free text.
        node: the rule as it is written.
    """

    match: tuple[Pattern, ...]
    roles: tuple[Role, ...] | None
    min_fraction: int | Fraction | None
    min_numel: int | None
    exceptions: tuple[Pattern, ...]
    layers: tuple[LayerRange, ...] | None
    patch: MapNode | None
    said: str | None
    keep: Keep | None
    optional: bool
    note: str | None
    node: Node

    @property
    def path(self) -> str:
        """The rule's path in its own file, such as `rules[2]`."""
        return self.node.path

    def location_of(self, key: str) -> Location:
        """Where the value of a key is written; where the rule starts if it has no such key."""
        return find(self.node, (key,))[0].location

    @property
    def only(self) -> str | None:
        """The one name that the rule can match, where it says no more than that."""
        more = self.roles or self.min_fraction or self.min_numel or self.exceptions or self.layers
        return self.match[0].exact if len(self.match) == 1 and not more else None


def rule_of(form: RuleForm, node: Node) -> Rule:
    """The rule that a checked form says, with the locations of its node."""
    patch = node.fields.get("set") if isinstance(node, MapNode) else None
    return Rule(
        match=tuple(map(pattern_of, form.match or ("*",))),
        roles=None if form.role is None else tuple(form.role),
        min_fraction=form.min_fraction,
        min_numel=form.min_numel,
        exceptions=tuple(map(pattern_of, form.except_ or ())),
        layers=None if form.layers is None else parse_layers(form.layers),
        patch=patch if isinstance(patch, MapNode) else None,
        said=None if form.set is None else repr(form.set),
        keep=form.keep,
        optional=form.optional,
        note=form.note,
        node=node,
    )
