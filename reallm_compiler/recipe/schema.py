"""The recipe language as a JSON Schema, for editors that complete and check YAML while one types.

It is made from the forms and stage models and holds what a schema can express: keys, kinds, types,
words and ranges. What joins several fields (b x d up to 16, which scales go with which quantizer)
is left to `check`. A rule's `set`, and `defaults` under `extends`, are parts of a plan: no key is
required there.
"""

from __future__ import annotations

import copy
from typing import Any

from reallm_compiler.recipe.model import RecipeForm
from reallm_compiler.stages import KvCache, MatrixPlan

_PART = "Part"
_GRID = "Grid"
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file."""
    schema = RecipeForm.model_json_schema(by_alias=True)
    whole: dict[str, Any] = {}
    for model in (MatrixPlan, KvCache):
        found = model.model_json_schema()
        whole |= {**found.pop("$defs"), model.__name__: found}
    parts = {f"{name}{_PART}": _part(definition) for name, definition in whole.items()}
    grids = {
        f"{name.removesuffix(_PART)}{_GRID}": _grid(definition)
        for name, definition in parts.items()
    }
    definitions = {**schema.pop("$defs"), **whole, **parts, **grids}

    rule = definitions["RuleForm"]
    for key, value in rule["properties"].items():
        rule["properties"][key] = _without_null(value)
    rule["properties"]["set"] = _reference(f"MatrixPlan{_PART}", rule["properties"]["set"])
    rule["oneOf"] = [{"required": ["set"]}, {"required": ["keep"]}]
    rule["anyOf"] = [{"required": ["match"]}, {"required": ["role"]}]
    del rule["description"]

    allocate = definitions["AllocateForm"]["properties"]
    for key, value in allocate.items():
        allocate[key] = _without_null(value)
    grid = {"$ref": f"#/$defs/MatrixPlan{_GRID}"}
    offered = {**rule, "properties": {**rule["properties"], "set": grid}, "required": ["set"]}
    del offered["properties"]["keep"], offered["oneOf"]
    allocate["candidates"]["items"] = {"anyOf": [{"type": "string"}, grid, offered]}
    schema["properties"]["allocate"] = _without_null(schema["properties"]["allocate"])

    defaults = schema["properties"]["defaults"]
    schema["properties"]["defaults"] = _reference(f"MatrixPlan{_PART}", defaults)
    cache = schema["properties"]["kv_cache"]
    schema["properties"]["kv_cache"] = {
        "anyOf": [{"$ref": f"#/$defs/KvCache{_PART}"}, {"type": "null"}],
        "description": cache["description"],
    }
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {
        "properties": {
            "defaults": {"$ref": "#/$defs/MatrixPlan"},
            "kv_cache": {"anyOf": [{"$ref": "#/$defs/KvCache"}, {"type": "null"}]},
        }
    }
    schema["description"] = "A recipe of reallm: how each matrix of a model is coded."
    document = _untitled({**schema, "$defs": dict(sorted(definitions.items()))})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "reallm recipe",
        **document,
    }


def _part(definition: dict[str, Any]) -> dict[str, Any]:
    """The schema of a part of what `definition` describes: nothing is required."""
    part = copy.deepcopy(definition)
    part.pop("required", None)
    _retarget(part)
    for value in part.get("properties", {}).values():
        # Without a kind a part fits several kinds, so one of them is enough.
        for option in [value, *value.get("anyOf", [])]:
            if "oneOf" in option:
                option["anyOf"] = option.pop("oneOf")
        value.pop("discriminator", None)
        value.pop("default", None)
    return part


def _grid(part: dict[str, Any]) -> dict[str, Any]:
    """The schema of a part of a plan in which a list of values stands for each of them."""
    grid = copy.deepcopy(part)
    _retarget(grid, _GRID)
    for key, value in grid.get("properties", {}).items():
        said = {"description": value.pop("description")} if "description" in value else {}
        several = {"type": "array", "items": value, "minItems": 1}
        grid["properties"][key] = {"anyOf": [value, several], **said}
    return grid


def _retarget(node: Any, suffix: str = _PART) -> None:  # noqa: ANN401 - a schema of any shape
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            node["$ref"] = node["$ref"].removesuffix(_PART) + suffix
        for value in node.values():
            _retarget(value, suffix)
    elif isinstance(node, list):
        for value in node:
            _retarget(value, suffix)


def _without_null(value: dict[str, Any]) -> dict[str, Any]:
    """A property of a rule without the null that stands for its absence."""
    options = [option for option in value.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == len(value.get("anyOf", [])):
        return value
    rest = {key: item for key, item in value.items() if key not in ("anyOf", "default")}
    return {**options[0], **rest} if len(options) == 1 else {"anyOf": options, **rest}


def _reference(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", "description": value["description"]}


def _untitled(node: Any, *, names: bool = False) -> Any:  # noqa: ANN401 - a schema of any shape
    """Without the titles that pydantic makes from names; `names`: the keys are names of ours."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        # pydantic leaves its own words for limits where it cannot see that a number is meant.
        key if names else _LIMITS.get(key, key): _untitled(
            value, names=not names and key in ("properties", "$defs")
        )
        for key, value in node.items()
        if names or key not in ("title", "discriminator")
    }
