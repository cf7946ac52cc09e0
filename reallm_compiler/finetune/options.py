"""The settings of one run: those of the archive's recipe, and over them those that are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm_compiler.errors import FinetuneError, Problem
from reallm_compiler.recipe.nodes import MapNode, from_plain
from reallm_compiler.recipe.patch import merge
from reallm_compiler.recipe.tuning import (
    SECTION,
    BlockOptions,
    EndToEndOptions,
    FinetuneOptions,
    Stage,
    check_settings,
)

__all__ = ["BlockOptions", "EndToEndOptions", "FinetuneOptions", "Stage", "options_from"]

_GIVEN = "settings"


def options_from(
    given: Mapping[str, Any] | None, recipe: Mapping[str, Any] | None = None
) -> FinetuneOptions:
    """The settings of a run.

    Args:
        given: settings as plain data; they win, field by field.
        recipe: a recipe's document, which may have a `finetune` section.

    Raises:
        FinetuneError: a setting is unknown or out of range; names all that are.
    """
    problems: list[Problem] = []
    tree = MapNode(fields={}, location=from_plain({}, _GIVEN)[0].location, path="")
    sources = [("the recipe's `finetune`", (recipe or {}).get(SECTION, {})), (_GIVEN, given or {})]
    for name, source in sources:
        node, wrong = from_plain(source, name)
        problems += wrong
        merged = merge(tree, node)
        if not isinstance(merged, MapNode):
            raise FinetuneError(f"{name}: expected a map")
        tree = merged
    options, wrong = check_settings(tree)
    problems += wrong
    if options is None or problems:
        raise FinetuneError("the settings are wrong: " + "; ".join(_shown(one) for one in problems))
    return options.resolved()


def _shown(problem: Problem) -> str:
    """A problem with its path, and with its source where that is not what was given."""
    prefix = "" if problem.location == _GIVEN else f"{problem.location}: "
    path = f"{problem.path}: " if problem.path else ""
    hint = f" ({problem.hint})" if problem.hint else ""
    return f"{prefix}{path}{problem.message}{hint}"
