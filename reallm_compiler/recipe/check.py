"""All checks of a recipe that need no model.

1. Each file is checked by itself: version, keys, types.
2. The defaults of all files are merged and checked as a plan.
3. The `set` of each rule is merged over the defaults and checked as a plan (in `check_sets`).

Problems are collected from all three and reported together, in the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from pydantic import ValidationError

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.allocation import SECTION as ALLOCATE
from reallm_compiler.recipe.allocation import AllocateForm
from reallm_compiler.recipe.messages import Loc, problems_of, shown
from reallm_compiler.recipe.model import RecipeForm, ShapesForm
from reallm_compiler.recipe.nodes import (
    ListNode,
    Location,
    MapNode,
    Node,
    ScalarNode,
    map_from_plain,
    to_plain,
)
from reallm_compiler.recipe.rule import RuleForm
from reallm_compiler.recipe.tuning import SECTION, FinetuneOptions, unknown_setting
from reallm_compiler.recipe.vocabulary import (
    homes,
    keys_of,
    listed,
    nearest,
    owners,
    stages,
    suggestion,
)
from reallm_compiler.stages import FIT_KINDS, PREPARE_KINDS, MatrixPlan, Stage, kind_name

VERSION: Final = 1
BUILT_IN = Location("default")
"""The location of a field that no recipe wrote."""


def built_in_plan() -> MapNode:
    """The plan before any recipe: nothing is coded."""
    return map_from_plain(MatrixPlan().plain(), BUILT_IN.file)


# ---- a plan ----------------------------------------------------------------------------------


def check_plan(tree: MapNode) -> tuple[MatrixPlan | None, list[Problem]]:
    """The plan of a merged tree, or what is wrong with it."""
    try:
        return MatrixPlan.model_validate(to_plain(tree)), []
    except ValidationError as error:
        problems = problems_of(error, tree, _unknown_in_plan)
        return None, [_with_plan_hint(problem, tree) for problem in problems]


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
    parents = homes(key)
    return f"it belongs under {' or '.join(parents)}" if parents else suggestion(key, valid)


def _with_plan_hint(problem: Problem, tree: MapNode) -> Problem:
    """Hints that need the stage: a bare word for a stage, parameters without a kind."""
    for stage, kinds in stages().items():
        field = tree.fields.get(stage)
        nodes = field.items if isinstance(field, ListNode) else (field,)
        for node in nodes:
            if node is not None and node.path == problem.path:
                return replace(problem, hint=_stage_hint(problem, node, kinds) or problem.hint)
    return problem


def _stage_hint(problem: Problem, node: Node, kinds: Mapping[str, type[Stage]]) -> str | None:
    if isinstance(node, ScalarNode):
        if node.value in kinds:
            return f"write `{{kind: {node.value}}}`"
        return "write `{kind: none}`" if node.value is None and "none" in kinds else None
    if isinstance(node, MapNode) and problem.message == "`kind` is missing":
        fitting = [kind for kind in kinds if set(node.fields) <= set(keys_of(kinds[kind]))]
        if len(fitting) < len(kinds):
            return f"with these parameters it can be {listed(fitting)}" if fitting else None
        return f"kinds: {listed(kinds)}"
    return None


# ---- a file ----------------------------------------------------------------------------------


def check_version(tree: Node) -> list[Problem]:
    """Whether this reallm can read the file at all."""
    if not isinstance(tree, MapNode):
        message = f"a recipe is a map that starts with `reallm: {VERSION}`, not {shown(tree)}"
        return [Problem(location=str(tree.location), path="", message=message)]
    node = tree.fields.get("reallm")
    if node is None:
        message = f"`reallm: {VERSION}` is missing: it is the version of the recipe language"
        return [Problem(location=str(tree.location), path="reallm", message=message)]
    if isinstance(node, ScalarNode) and type(node.value) is int and node.value == VERSION:
        return []
    if isinstance(node, ScalarNode) and type(node.value) is int and node.value > VERSION:
        hint = f"install a newer reallm, or rewrite the recipe for version {VERSION}"
    else:
        hint = f"write `reallm: {VERSION}`"
    message = f"this reallm reads version {VERSION} of the recipe language, not {shown(node)}"
    return [Problem(location=str(node.location), path="reallm", message=message, hint=hint)]


def check_form(tree: MapNode) -> tuple[RecipeForm | None, list[Problem]]:
    """Keys and types of one file; the insides of plans are left to `check_plan`."""
    try:
        return RecipeForm.model_validate(to_plain(tree)), []
    except ValidationError as error:
        return None, problems_of(error, tree, _unknown_in_form)


def _keys_of_kind(kinds: Sequence[type[Stage]], node: MapNode) -> list[str]:
    """The parameters of the kind that a map names; those of all kinds if it names none."""
    kind = node.fields.get("kind")
    named = [one for one in kinds if isinstance(kind, ScalarNode) and kind_name(one) == kind.value]
    return list(dict.fromkeys(key for one in named or kinds for key in keys_of(one)))


def _unknown_in_form(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    message = f"unknown key `{key}`"
    if loc[:1] == (SECTION,):
        return unknown_setting(loc[1:], key, node)
    if loc[:1] == ("rules",):
        return unknown_in_rule(loc, key, node)
    if loc[:1] == (ALLOCATE,):
        return message, suggestion(key, keys_of(AllocateForm))
    if loc[:1] == ("prepare",):
        return message, suggestion(key, _keys_of_kind(PREPARE_KINDS, node))
    if loc[:1] == ("fit",):
        return message, suggestion(key, _keys_of_kind(FIT_KINDS, node))
    if loc[:1] == ("model",):
        return message, suggestion(key, keys_of(ShapesForm))
    return _unknown_beside_plans(key, keys_of(RecipeForm), "put it under `defaults`")


def unknown_in_rule(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    """Message and hint for a key that no rule has."""
    return _unknown_beside_plans(key, keys_of(RuleForm), "put it under `set`")


def _unknown_beside_plans(key: str, valid: list[str], below: str) -> tuple[str, str | None]:
    message = f"unknown key `{key}`"
    if key in MatrixPlan.model_fields:
        return message, below
    if near := nearest(key, valid):
        return message, f"did you mean `{near}`?"
    if key in keys_of(RuleForm):
        return message, "it belongs to a rule"
    if key in keys_of(FinetuneOptions):
        return message, f"it belongs under `{SECTION}`"
    if near := nearest(key, keys_of(MatrixPlan)):
        return message, f"did you mean `{near}`? {below}"
    return message, _near_or_home(key, valid)
