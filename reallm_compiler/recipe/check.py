"""Everything that can be said about a recipe before it meets a model.

1. Each file is checked by itself: version, keys, types.
2. The defaults of all files are merged and checked as a plan.
3. The `set` of each rule is merged over the defaults and checked as a plan.

Problems are collected from all three and reported together, in the order of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.messages import Loc, find_known, problems_of, shown
from reallm_compiler.recipe.model import RecipeForm, RuleForm, ShapesForm
from reallm_compiler.recipe.nodes import (
    ListNode,
    MapNode,
    Node,
    Place,
    ScalarNode,
    map_from_plain,
    to_plain,
)
from reallm_compiler.recipe.patch import merge_maps as merged
from reallm_compiler.recipe.stages import MatrixPlan
from reallm_compiler.recipe.words import homes, keys_of, listed, nearest, owners, stages, suggestion

VERSION = 1
BUILT_IN = Place("default")
"""The place of a field that no recipe wrote."""

_NEIGHBOURS = 64


def built_in_plan() -> MapNode:
    """The plan before any recipe: nothing is coded."""
    return map_from_plain(MatrixPlan().plain(), BUILT_IN.file)


# ---- a plan ----------------------------------------------------------------------------------


def check_plan(tree: MapNode) -> tuple[MatrixPlan | None, list[Problem]]:
    """The plan that a merged tree says, or what is wrong with it."""
    try:
        return MatrixPlan.model_validate(to_plain(tree)), []
    except ValidationError as error:
        problems = problems_of(error, tree, _unknown_in_plan, _without_kind)
        return None, [_with_plan_hint(problem, tree) for problem in problems]


def _without_kind(loc: Loc) -> Loc:
    kinds = stages().get(str(loc[0]), {}) if loc else {}
    return (loc[0], *loc[2:]) if len(loc) > 1 and len(kinds) > 1 and loc[1] in kinds else loc


def _unknown_in_plan(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    if not loc:
        return f"unknown key `{key}`", _near_or_home(key, keys_of(MatrixPlan))
    stage = str(loc[0])
    kind_node = node.fields.get("kind")
    kind = str(kind_node.value) if isinstance(kind_node, ScalarNode) else ""
    kinds = stages()[stage]
    model = kinds.get(kind) or next(iter(kinds.values()))
    message = f"`{key}` is not a parameter of `{kind}`" if kind else f"unknown key `{key}`"
    owning = owners(stage, key)
    if owning:
        return message, f"it belongs to the kind {listed(owning)}"
    if near := nearest(key, keys_of(model)):
        return message, f"did you mean `{near}`?"
    for other, other_model in kinds.items():
        if near := nearest(key, keys_of(other_model)):
            return message, f"did you mean `{near}` of the kind `{other}`?"
    return message, _near_or_home(key, keys_of(model))


def _near_or_home(key: str, valid: Sequence[str]) -> str:
    if near := nearest(key, valid):
        return f"did you mean `{near}`?"
    places = homes(key)
    return f"it belongs under {' or '.join(places)}" if places else suggestion(key, valid)


def _with_plan_hint(problem: Problem, tree: MapNode) -> Problem:
    """Hints that need the stage: a bare word for a stage, parameters without a kind."""
    for stage, kinds in stages().items():
        node = tree.fields.get(stage)
        if node is None or node.path != problem.path or problem.hint:
            continue
        hint = None
        if isinstance(node, ScalarNode) and node.value in kinds:
            hint = f"write `{{kind: {node.value}}}`"
        elif isinstance(node, MapNode) and problem.message == "`kind` is missing":
            fitting = [kind for kind in kinds if set(node.fields) <= set(keys_of(kinds[kind]))]
            hint = f"kinds with these parameters: {listed(fitting)}" if fitting else None
            hint = hint or f"kinds: {listed(kinds)}"
        if hint:
            return Problem(
                location=problem.location, path=problem.path, message=problem.message, hint=hint
            )
    return problem


# ---- a file ----------------------------------------------------------------------------------


def check_version(tree: Node) -> list[Problem]:
    """Whether this reallm can read the file at all."""
    if not isinstance(tree, MapNode):
        message = f"a recipe is a map that starts with `reallm: {VERSION}`, not {shown(tree)}"
        return [Problem(location=str(tree.place), path="", message=message)]
    node = tree.fields.get("reallm")
    if node is None:
        message = f"`reallm: {VERSION}` is missing: it says which version of the language this is"
        return [Problem(location=str(tree.place), path="reallm", message=message)]
    if isinstance(node, ScalarNode) and type(node.value) is int and node.value == VERSION:
        return []
    if isinstance(node, ScalarNode) and type(node.value) is int and node.value > VERSION:
        hint = f"install a newer reallm, or rewrite the recipe for version {VERSION}"
    else:
        hint = f"write `reallm: {VERSION}`"
    message = f"this reallm reads version {VERSION} of the recipe language, not {shown(node)}"
    return [Problem(location=str(node.place), path="reallm", message=message, hint=hint)]


def check_form(tree: MapNode) -> tuple[RecipeForm | None, list[Problem]]:
    """Keys and types of one file; the insides of plans are left to `check_plan`."""
    try:
        return RecipeForm.model_validate(to_plain(tree)), []
    except ValidationError as error:
        return None, problems_of(error, tree, _unknown_in_form, lambda loc: loc)


def _unknown_in_form(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    message = f"unknown key `{key}`"
    if loc[:1] == ("rules",):
        valid, below = keys_of(RuleForm), "put it under `set`"
    elif loc[:1] == ("model",):
        return message, suggestion(key, keys_of(ShapesForm))
    else:
        valid, below = keys_of(RecipeForm), "put it under `defaults`"
    if key in MatrixPlan.model_fields:
        return message, below
    if near := nearest(key, valid):
        return message, f"did you mean `{near}`?"
    if key in keys_of(RuleForm):
        return message, "it belongs to a rule"
    if near := nearest(key, keys_of(MatrixPlan)):
        return message, f"did you mean `{near}`? {below}"
    return message, _near_or_home(key, valid)


# ---- rules -----------------------------------------------------------------------------------


def check_sets(rules: Sequence[Node], defaults: MapNode) -> list[Problem]:
    """What is wrong with the `set` of each rule, reported at the rule.

    A rule may build on an earlier one (the first sets a kind, the second a parameter of it), so a
    rule is wrong only if it fits neither the defaults nor any rule before it.
    """
    plan, of_defaults = check_plan(defaults)
    known = {problem.message for problem in of_defaults if problem.path == defaults.path}
    problems: list[Problem] = []
    earlier: list[MapNode] = []
    together = defaults
    for rule in rules:
        patch = rule.fields.get("set") if isinstance(rule, MapNode) else None
        if not isinstance(patch, MapNode):
            continue
        found = _own_problems(defaults, patch)
        if found and plan is not None and _fits_an_earlier(earlier, together, defaults, patch):
            found = []
        problems += [problem for problem in found if problem.message not in known]
        earlier.append(patch)
        together = merged(together, patch)
    return problems


def _own_problems(base: MapNode, patch: MapNode) -> list[Problem]:
    _, problems = check_plan(merged(base, patch))
    file = patch.place.file
    return [
        problem
        for problem in problems
        if problem.path.startswith(patch.path)
        and (problem.location == file or problem.location.startswith(f"{file}:"))
    ]


def _fits_an_earlier(
    earlier: Sequence[MapNode], together: MapNode, defaults: MapNode, patch: MapNode
) -> bool:
    bases = [together, *(merged(defaults, one) for one in reversed(earlier[-_NEIGHBOURS:]))]
    return any(check_plan(merged(base, patch))[0] is not None for base in bases)


def rule_nodes(tree: MapNode) -> tuple[Node, ...]:
    """The rules of one file."""
    node = tree.fields.get("rules")
    return node.items if isinstance(node, ListNode) else ()


def defaults_node(tree: MapNode) -> MapNode | None:
    """The defaults of one file."""
    node = tree.fields.get("defaults")
    return node if isinstance(node, MapNode) else None


def value_of(tree: MapNode, *path: str | int) -> Any:  # noqa: ANN401 - plain data
    """The plain value at `path`; None if it is not there."""
    node, known = find_known(tree, path)
    return to_plain(node) if len(known) == len(path) else None
