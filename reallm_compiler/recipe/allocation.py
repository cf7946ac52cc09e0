"""What may stand in a recipe's `allocate` section, and what a checked section is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from reallm_compiler.recipe.match import Pattern
from reallm_compiler.recipe.nodes import Location, MapNode
from reallm_compiler.recipe.rule import Form, PatternList, PatternText, Rule
from reallm_compiler.stages import Rational
from reallm_compiler.stages.base import plain_number
from reallm_compiler.units import parse_bytes

SECTION = "allocate"
"""The section's key in a recipe."""

Scope: TypeAlias = Literal["file", "coded"]

MOST_BITS = 64


def _as_bytes(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, float):
        raise ValueError("a number of bytes is an integer; write a size such as `3.2GB`")
    return parse_bytes(value) if isinstance(value, str) else value


def _possible_bits(value: int | Fraction) -> int | Fraction:
    if not 0 < value <= MOST_BITS:
        raise ValueError(f"expected bits per weight above 0 and up to {MOST_BITS}, such as 5/2")
    return value


class AllocateForm(Form):
    """What `reallm allocate` chooses from, and how much may be stored."""

    bytes: Annotated[
        int | None, BeforeValidator(_as_bytes, json_schema_input_type=int | str | None)
    ] = Field(default=None, description="The most bytes: `3.2GB`, `800MiB`, or an integer.")
    bits: Annotated[Rational, AfterValidator(_possible_bits)] | None = Field(
        default=None, description="The most bits per weight, instead of `bytes`."
    )
    scope: Scope | None = Field(
        default=None,
        description="What the target counts: `file`, all of the file (bits: for each number of the "
        "model), or `coded`, what is stored for coded matrices (bits: for each of their weights, "
        "the exact bits). Without it `bytes` count the file, and `bits` what is coded.",
    )
    candidates: list[str | dict[str, Any]] = Field(
        default_factory=list,
        description="What each matrix may get: a shipped recipe or a recipe file, a part of a plan "
        "that is put over the matrix's own, in which lists of values span a grid, or a rule with "
        "such a `set`, which offers it to the matrices that it matches.",
    )
    groups: list[Annotated[list[PatternText], Field(min_length=2)]] = Field(
        default_factory=list,
        description="Matrices that get the same candidate: last parts of names, for matrices of "
        "one module; or patterns with `*`, for matrices of one layer.",
    )
    lock: PatternList | None = Field(
        default=None, description="Patterns of matrices that keep the plan that the recipe gives."
    )

    @model_validator(mode="after")
    def _one_target(self) -> AllocateForm:
        if self.bytes is not None and self.bits is not None:
            raise ValueError("a target is either `bytes` or `bits`; this section has both")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """How much may be stored.

    Attributes:
        amount: bytes, or bits per weight.
        unit: which of them.
        scope: what is counted, the whole `file` or what is `coded`.
        text: as people write it.
    """

    amount: int | Fraction
    unit: Literal["bytes", "bits"]
    scope: Scope
    text: str


def target_of_bytes(text: str | int, scope: Scope | None = None) -> Target:
    """A target in bytes, of the file where `scope` is None.

    Raises:
        ValueError: `text` is no size.
    """
    written = str(text).replace(" ", "")
    amount = parse_bytes(written)
    return Target(amount=amount, unit="bytes", scope=scope or "file", text=written)


def target_of_bits(bits: int | Fraction, scope: Scope | None = None) -> Target:
    """A target in bits per weight, of coded matrices where `scope` is None.

    Raises:
        ValueError: so many bits are not possible.
    """
    amount = _possible_bits(bits)
    return Target(
        amount=amount, unit="bits", scope=scope or "coded", text=str(plain_number(amount))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPlan:
    """What a recipe that is named as a candidate does with matrices: its defaults and its rules."""

    tree: MapNode
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCandidate:
    """A way to store a matrix that the choice is made from.

    Attributes:
        label: a recipe's name, or a part of a plan as YAML on one line.
        named: the recipe that it names; None for a part of a plan.
        patch: the part of a plan; None for a named recipe.
        rule: which matrices it is offered to; None for all.
        location: where it is written.
        path: its path in its own file, such as `allocate.candidates[2]`.
    """

    label: str
    named: NamedPlan | None
    patch: MapNode | None
    rule: Rule | None
    location: Location
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """A checked `allocate` section.

    Attributes:
        target: how much may be stored; None where the command has to say it.
        scope: what a target of the command counts; None for that of its unit.
        candidates: what is chosen from, grids spanned.
        groups: patterns of matrices that get the same candidate.
        lock: patterns of matrices that keep the recipe's plan.
        location: where the section is written.
    """

    target: Target | None
    scope: Scope | None
    candidates: tuple[PlanCandidate, ...]
    groups: tuple[tuple[Pattern, ...], ...]
    lock: tuple[Pattern, ...]
    location: Location
