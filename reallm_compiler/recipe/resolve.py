"""A recipe meets the tensors of a model: for each of them a decision, and who made it.

Rules run in order. A `set` rule codes a matrix and patches its plan; a `keep` rule keeps the
tensor. The last rule that matches says whether a tensor is coded or kept; the plan of a coded one
is the defaults with every matching `set` put over them, in order.

A plan depends only on what the rules say that apply, so it is made once for all rules that say the
same, and a recipe may have a rule for each matrix. Who set a field is found when it is asked for.
Share groups whose members turn out to have different plans are divided at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe.check import check_plan
from reallm_compiler.recipe.model import Recipe
from reallm_compiler.recipe.nodes import MapNode
from reallm_compiler.recipe.patch import merge_all, merge_maps
from reallm_compiler.recipe.rule import Keep, Rule
from reallm_compiler.recipe.selection import Candidate, select
from reallm_compiler.recipe.trace import FieldSource, trace_of, trace_of_kept
from reallm_compiler.stages import MatrixPlan

__all__ = ["Candidate", "Decision", "FieldSource", "resolve"]


@dataclass(kw_only=True)
class Decision:
    """What happens to a tensor.

    Attributes:
        plan: how it is coded; None if it is kept.
        keep: the type it is kept in, or `source` for its own; None if it is coded.
        layers: the defaults and the parts that were put over them to make the plan.
        rule: the rule that keeps a tensor; None if none does.
    """

    plan: MatrixPlan | None
    keep: Keep | None
    layers: tuple[MapNode, ...] = ()
    rule: Rule | None = None

    @cached_property
    def trace(self) -> tuple[FieldSource, ...]:
        """For every field of the plan who set it; for a kept tensor one entry, `keep`."""
        return trace_of_kept(self.rule) if self.plan is None else trace_of(self.plan, self.layers)


class Traces(Mapping[str, tuple[FieldSource, ...]]):
    """Who set which field of each tensor's plan, by name."""

    def __init__(self, decisions: Mapping[str, Decision]) -> None:
        self._decisions = decisions

    def __getitem__(self, name: str) -> tuple[FieldSource, ...]:
        return self._decisions[name].trace

    def __iter__(self) -> Iterator[str]:
        return iter(self._decisions)

    def __len__(self) -> int:
        return len(self._decisions)


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
    deciding = _Deciding(recipe)
    for candidate, key in zip(candidates, applied, strict=True):
        if key not in known:
            known[key], found = deciding.of(key)
            for problem in found:  # once for each rule, not for each matrix
                what = (problem.location, problem.path, problem.message)
                unique.setdefault(what, _met_at(problem, candidate.name))
        keys[candidate.name] = key
    problems += unique.values()
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    decisions = {key: decision for key, decision in known.items() if decision is not None}
    _divide([decisions[key] for key in sorted(decisions, key=lambda key: key[1])])
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
        if not candidate.is_matrix or not _is_coded(key, rules):
            continue
        if key not in known:
            known[key] = merge_all(_layers(defaults, key, rules))
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


def _is_coded(key: _Applied, rules: Sequence[Rule]) -> bool:
    """Whether a tensor is coded: as its last rule says, or else by default."""
    coded, numbers = key
    return rules[numbers[-1]].keep is None if numbers else coded


def _layers(defaults: MapNode, key: _Applied, rules: Sequence[Rule]) -> tuple[MapNode, ...]:
    """The defaults and the parts of plans that apply to a tensor, in order."""
    patches = [rules[number].patch for number in key[1]]
    return (defaults, *[patch for patch in patches if patch is not None])


class _Deciding:
    """Decides; what several rules say alike is merged and checked once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._plans: dict[tuple[str | None, ...], MatrixPlan] = {}

    def of(self, key: _Applied) -> tuple[Decision | None, list[Problem]]:
        """The decision for a tensor, or what is wrong with its plan."""
        rules = self._recipe.rules
        if not _is_coded(key, rules):
            last = rules[key[1][-1]] if key[1] else None
            keep: Keep = "source" if last is None or last.keep is None else last.keep
            return Decision(plan=None, keep=keep, rule=last), []
        layers = _layers(self._recipe.tree, key, rules)
        said = tuple(rules[number].said for number in key[1])
        plan = self._plans.get(said)
        if plan is None:
            plan, problems = check_plan(merge_all(layers))
            if plan is None:
                return None, [_earliest(problem, layers) for problem in problems]
            self._plans[said] = plan
        return Decision(plan=plan, keep=None, layers=layers), []


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
    return replace(problem, message=f"{problem.message}; the rules together say so for `{name}`")


def _divide(decisions: Collection[Decision]) -> None:
    """Divide share groups into what one codebook, table or decoder can serve.

    What a group shares is learned from all of its matrices, so only matrices of equal plans stay
    together, apart from DoRA, which is put on afterwards, and from what the quantizer names in
    `per_matrix`: the rates of a trellis. The part to which the first rules apply, or none, keeps
    the group's name; the others are numbered: `NAME.2`, ...
    """
    plans: dict[int, MatrixPlan] = {}  # one object stands for many matrices, and a hash costs much
    for decision in decisions:
        if decision.plan is not None and decision.plan.share is not None:
            plans.setdefault(id(decision.plan), decision.plan)
    parts: dict[str, dict[MatrixPlan, str]] = {}
    for plan in plans.values():
        assert plan.share is not None
        parts.setdefault(plan.share, {}).setdefault(learned_part(plan), "")
    taken = set(parts)
    for group, learned in parts.items():
        numbered = (f"{group}.{number}" for number in itertools.count(2))
        names = itertools.chain([group], (name for name in numbered if name not in taken))
        learned.update(zip(list(learned), names, strict=False))
    renamed = {number: _renamed(plan, parts) for number, plan in plans.items()}
    for decision in decisions:
        decision.plan = renamed.get(id(decision.plan), decision.plan)


def learned_part(plan: MatrixPlan) -> MatrixPlan:
    """The part of a plan that all matrices of a group have, which share what is learned of them."""
    quantizer = plan.quantizer.model_copy(update=dict.fromkeys(plan.quantizer.per_matrix))
    return plan.model_copy(update={"share": None, "dora": False, "quantizer": quantizer})


def _renamed(plan: MatrixPlan, parts: Mapping[str, Mapping[MatrixPlan, str]]) -> MatrixPlan:
    """A plan with the name of its part of the group."""
    assert plan.share is not None
    name = parts[plan.share][learned_part(plan)]
    return plan if name == plan.share else plan.model_copy(update={"share": name})
