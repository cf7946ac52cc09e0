"""A recipe meets the tensors of a model: for each of them a decision, and who made it.

Rules run in order. A `set` rule codes a matrix and patches its plan; a `keep` rule keeps the
tensor. The last rule that matches says whether a tensor is coded or kept; the plan of a coded one
is the defaults with every matching `set` put over them, in order.

Decisions depend only on which rules apply, so they are made once for each distinct set of rules.
Share groups whose members turn out to have different plans are divided at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe.check import BUILT_IN, check_plan
from reallm_compiler.recipe.model import Recipe
from reallm_compiler.recipe.nodes import (
    Location,
    MapNode,
    leaves,
    to_plain,
)
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.rule import Keep, Rule
from reallm_compiler.recipe.selection import Candidate, select
from reallm_compiler.stages import MatrixPlan

__all__ = ["Candidate", "Decision", "FieldSource", "resolve"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSource:
    """Who set a field.

    Attributes:
        path: the field, such as `residual.rank`, or `keep`.
        value: its value as plain data.
        location: `file:line` of the last writer; `default` if no recipe wrote it.
        origin: the last writer's path in its document, such as `rules[2].set.residual.rank` or
            `defaults.residual.rank`; empty if no recipe wrote it.
        overridden: `file:line` of earlier writers of the same field, the first one first.
    """

    path: str
    value: object
    location: str
    origin: str
    overridden: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What happens to a tensor.

    Attributes:
        plan: how it is coded; None if it is kept.
        keep: the type it is kept in, or `source` for its own; None if it is coded.
        trace: for every field of the plan who set it; for a kept tensor one entry, `keep`.
    """

    plan: MatrixPlan | None
    keep: Keep | None
    trace: tuple[FieldSource, ...]


_Applied: TypeAlias = tuple[bool, tuple[int, ...]]
"""What decides about a tensor: whether it is coded without a rule, and which rules apply."""


def resolve(recipe: Recipe, candidates: Sequence[Candidate]) -> dict[str, Decision]:
    """The decision about each candidate, by name.

    Args:
        recipe: a checked recipe.
        candidates: all tensors of a model, in any order.

    Raises:
        RecipeError: a rule (or an entry of its `except`) matches nothing and is not optional, a
            `set` meets no matrix, or rules together make an impossible plan.
    """
    applied, problems = _applied(recipe.rules, candidates)
    known: dict[_Applied, Decision | None] = {}
    unique: dict[tuple[str, str, str], Problem] = {}
    keys: dict[str, _Applied] = {}
    trace = _Trace()
    for candidate, key in zip(candidates, applied, strict=True):
        if key not in known:
            rules = [recipe.rules[number] for number in key[1]]
            known[key], found = _decide(recipe, rules, trace, coded=key[0])
            for problem in found:  # once for each rule, not for each matrix
                what = (problem.location, problem.path, problem.message)
                unique.setdefault(what, _met_at(problem, candidate.name))
        keys[candidate.name] = key
    problems += unique.values()
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    decisions = _divided(known)
    return {name: decisions[key] for name, key in keys.items()}


def merged_trees(
    defaults: MapNode, rules: Sequence[Rule], candidates: Sequence[Candidate]
) -> dict[str, MapNode]:
    """The tree of the plan of each matrix that defaults and rules code, by name.

    It is one object for all matrices to which the same rules apply; groups are not divided.

    Raises:
        RecipeError: a rule matches nothing and is not optional, or a `set` meets no matrix.
    """
    applied, problems = _applied(rules, candidates)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    known: dict[_Applied, MapNode] = {}
    trees = {}
    for candidate, key in zip(candidates, applied, strict=True):
        coded, numbers = key
        kept = rules[numbers[-1]].keep is not None if numbers else not coded
        if kept or not candidate.is_matrix:
            continue
        if key not in known:
            tree = defaults
            for patch in (rules[number].patch for number in numbers):
                tree = tree if patch is None else merge_maps(tree, patch)
            known[key] = tree
        trees[candidate.name] = known[key]
    return trees


def _applied(
    rules: Sequence[Rule], candidates: Sequence[Candidate]
) -> tuple[list[_Applied], list[Problem]]:
    """For each candidate what decides about it; and what is wrong with the rules."""
    chosen, problems = select(rules, candidates)
    applied: list[list[int]] = [[] for _ in candidates]
    for number, indices in enumerate(chosen):
        for index in indices:
            # A `set` has no meaning for what is no matrix; `select` has the complaint.
            if candidates[index].is_matrix or rules[number].patch is None:
                applied[index].append(number)
    return [
        (candidate.coded_by_default and candidate.is_matrix, tuple(numbers))
        for candidate, numbers in zip(candidates, applied, strict=True)
    ], problems


def _decide(
    recipe: Recipe, rules: Sequence[Rule], trace: _Trace, *, coded: bool
) -> tuple[Decision | None, list[Problem]]:
    """The decision for a tensor to which `rules` apply."""
    last = rules[-1] if rules else None
    if last is not None and last.keep is not None:
        source = FieldSource(
            path="keep",
            value=last.keep,
            location=_line(last.key_locations.get("keep", last.location), f"{last.path}.keep"),
            origin=f"{last.path}.keep",
        )
        return Decision(plan=None, keep=last.keep, trace=(source,)), []
    if last is None and not coded:
        source = FieldSource(path="keep", value="source", location=BUILT_IN.file, origin="")
        return Decision(plan=None, keep="source", trace=(source,)), []
    layers = [recipe.tree, *(rule.patch for rule in rules if rule.patch is not None)]
    tree = layers[0]
    for patch in layers[1:]:
        tree = merge_maps(tree, patch)
    plan, problems = check_plan(tree)
    if plan is None:
        return None, [_earliest(problem, layers) for problem in problems]
    return Decision(plan=plan, keep=None, trace=trace.of(plan, tree, layers)), []


def _earliest(problem: Problem, layers: Sequence[MapNode]) -> Problem:
    """The same problem at the rule that brought it, which later rules may have nothing to do with.

    Only a problem of several stages can be reported too late: it has no node but the whole plan's.
    """
    tree = layers[0]
    for patch in layers[1:]:
        tree = merge_maps(tree, patch)
        for other in check_plan(tree)[1]:
            if other.message == problem.message:
                return other
    return problem


def _met_at(problem: Problem, name: str) -> Problem:
    return Problem(
        location=problem.location,
        path=problem.path,
        message=f"{problem.message}; the rules together say so for `{name}`",
        hint=problem.hint,
    )


def _line(location: Location, path: str) -> str:
    """`file:line`; a recipe without lines is cited by path."""
    if location == BUILT_IN:
        return location.file
    return f"{location.file}:{location.line}" if location.line else f"{location.file}: {path}"


class _Trace:
    """Finds who set a field; the fields of each part of a plan are listed once."""

    def __init__(self) -> None:
        self._fields: dict[int, dict[str, str]] = {}

    def of(
        self, plan: MatrixPlan, tree: MapNode, layers: Sequence[MapNode]
    ) -> tuple[FieldSource, ...]:
        """The sources of a plan's fields; `tree` is what `layers` were merged to, in order."""
        final = dict(leaves(tree))
        writers = [self._written(layer) for layer in layers]
        sources = []
        for path, value in _fields(_as_written(plan.plain(), tree)):
            node = final.get(path)
            if node is None or node.location == BUILT_IN:
                source = FieldSource(path=path, value=value, location=BUILT_IN.file, origin="")
            else:
                location = _line(node.location, node.path)
                others = (written[path] for written in writers if path in written)
                source = FieldSource(
                    path=path,
                    value=value,
                    location=location,
                    origin=node.path,
                    overridden=tuple(other for other in others if other != location),
                )
            sources.append(source)
        return tuple(sources)

    def _written(self, layer: MapNode) -> dict[str, str]:
        """The fields that a part of a plan writes, and in which line."""
        if id(layer) not in self._fields:
            self._fields[id(layer)] = {
                path: _line(node.location, node.path)
                for path, node in leaves(layer)
                if node.location != BUILT_IN
            }
        return self._fields[id(layer)]


def _as_written(plan: Mapping[str, Any], tree: MapNode) -> dict[str, Any]:
    """A plain plan with the list of a stage as the map of its one kind, where that was written."""
    written = dict(plan)
    for key, node in tree.fields.items():
        if isinstance(node, MapNode) and isinstance(plan[key], list):
            written[key] = plan[key][0] if plan[key] else to_plain(node)
    return written


def _fields(plan: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a plain plan, each with its path."""
    for key, value in plan.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _divided(known: Mapping[_Applied, Decision | None]) -> dict[_Applied, Decision]:
    """The decisions with share groups that hold what one codebook, table or decoder can serve.

    What a group shares is learned from all of its matrices under one plan, so only matrices of
    equal plans (DoRA apart, which is put on afterwards) stay together. The part to which the
    first rules apply, or none, keeps the group's name; the others are numbered: `NAME.2`, ...
    """
    decisions = {key: decision for key, decision in known.items() if decision is not None}
    parts: dict[str, dict[MatrixPlan, str]] = {}
    for _, decision in sorted(decisions.items(), key=lambda entry: entry[0][1]):
        if decision.plan is not None and decision.plan.share is not None:
            parts.setdefault(decision.plan.share, {}).setdefault(learned_part(decision.plan), "")
    taken = set(parts)
    for group, plans in parts.items():
        numbered = (f"{group}.{number}" for number in itertools.count(2))
        names = itertools.chain([group], (name for name in numbered if name not in taken))
        plans.update(zip(list(plans), names, strict=False))
    return {key: _renamed(decision, parts) for key, decision in decisions.items()}


def learned_part(plan: MatrixPlan) -> MatrixPlan:
    """The part of a plan on which depends what its group learns."""
    return plan.model_copy(update={"share": None, "dora": False})


def _renamed(decision: Decision, parts: Mapping[str, Mapping[MatrixPlan, str]]) -> Decision:
    plan = decision.plan
    if plan is None or plan.share is None:
        return decision
    name = parts[plan.share][learned_part(plan)]
    if name == plan.share:
        return decision
    trace = (replace(one, value=name) if one.path == "share" else one for one in decision.trace)
    return replace(decision, plan=plan.model_copy(update={"share": name}), trace=tuple(trace))
