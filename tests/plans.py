"""Matrix plans of any kinds, drawn from the registry and the schemas of the kinds' parameters.

A kind that is registered is drawn too: no list of kinds stands here. Numbers are drawn near their
lower bound, where edges are and where coding is quick, and at their default where that is small.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from reallm_compiler.stages import KINDS, MatrixPlan, Stage, kinds

Fields = dict[str, Any]

SPAN = 7
"""How far above its least value a number is drawn."""

CHEAP = 8
"""The largest default that is drawn: thousands of epochs take too long."""

FRACTIONS = ("1/4", "1/2", "5/4", 1, 2, 3, "5/2")
"""What stands where the schema admits integers, floats and fractions as text."""

ATTEMPTS = 10_000


def some_fields(draw: random.Random, share: str | None = "g") -> Fields:
    """Fields of a plan: kinds that are valid by themselves, and perhaps not together."""
    fields: Fields = {"dora": draw.random() < 0.5, "share": draw.choice((None, None, share))}
    for stage in KINDS:
        if isinstance(getattr(MatrixPlan(), stage), tuple):
            fields[stage] = [some_kind(draw, stage) for _ in range(draw.choice((0, 1, 2)))]
        else:
            fields[stage] = some_kind(draw, stage)
    return fields


def some_plan(draw: random.Random, share: str | None = "g") -> MatrixPlan:
    """A valid plan."""
    for _ in range(ATTEMPTS):
        try:
            return MatrixPlan.model_validate(some_fields(draw, share))
        except ValidationError:
            continue
    raise AssertionError("no kinds go together")


def some_kind(draw: random.Random, stage: str, name: str | None = None) -> Fields:
    """Valid parameters of a kind of a stage.

    Args:
        draw: where chance comes from.
        stage: a stage of the plan.
        name: the kind; any without it.
    """
    names = [name] if name else draw.sample(list(kinds(stage)), len(kinds(stage)))
    for chosen in names:
        params = kinds(stage)[chosen]
        for _ in range(ATTEMPTS):
            fields = parameters(draw, params)
            try:
                params.model_validate(fields)
            except ValidationError:
                continue
            return fields
    raise AssertionError(f"no parameters of {stage} {name or ''} are valid")


def parameters(draw: random.Random, params: type[Stage]) -> Fields:
    """Values that the schema of a kind admits, field by field; perhaps not together."""
    return {name: value(draw, field) for name, field in properties(params).items()}


@cache
def properties(params: type[BaseModel]) -> dict[str, Any]:
    """Schemas of the fields of a model."""
    return dict(params.model_json_schema()["properties"])


def value(draw: random.Random, schema: Mapping[str, Any]) -> Any:
    """A value that a schema of one field admits."""
    default = schema.get("default")
    if "anyOf" in schema:
        return of_union(draw, schema["anyOf"], default)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if schema["type"] == "boolean":
        return draw.random() < 0.5
    if schema["type"] == "array":
        count = len(default) if isinstance(default, list) else 2
        return [value(draw, schema["items"]) for _ in range(count)]
    if schema["type"] == "number":
        return schema.get("minimum", schema.get("exclusiveMinimum", 0)) + draw.choice((1e-3, 1e-2))
    assert schema["type"] == "integer", schema
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    most = min(schema.get("maximum", least + SPAN), least + SPAN)
    if isinstance(default, int) and default <= CHEAP and draw.random() < 0.3:
        return default
    return draw.randint(least, most)


def of_union(draw: random.Random, members: list[dict[str, Any]], default: object) -> Any:
    """A value of one of several schemas."""
    types = {member.get("type") for member in members}
    if types >= {"integer", "number"}:  # one number, as people write it
        words = [member["const"] for member in members if "const" in member]
        if words and draw.random() < 0.5:
            return draw.choice(words)
        return draw.choice(FRACTIONS) if "string" in types else draw.randint(1, 1 + SPAN)
    # Text beside null is the name of a file, which is not there.
    given = [member for member in members if "const" in member or member.get("type") != "string"]
    chosen = draw.choice(given)
    return None if chosen.get("type") == "null" else value(draw, {**chosen, "default": default})
