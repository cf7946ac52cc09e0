"""What each matrix of a model may get: the plans of a recipe's candidates, by matrix.

A named recipe gives a matrix what its defaults and rules say, a part of a plan is put over the
matrix's own. What does not fit a matrix, by its other stages or by its shape, is not offered to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.planning.build import rule_candidates
from reallm_compiler.recipe import Candidate, Recipe
from reallm_compiler.recipe.allocation import Allocation, PlanCandidate
from reallm_compiler.recipe.check import check_plan
from reallm_compiler.recipe.match import Pattern
from reallm_compiler.recipe.nodes import MapNode
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.resolve import merged_trees
from reallm_compiler.recipe.selection import select
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import LayoutTable, MatrixLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A plan that a matrix may get.

    Attributes:
        candidates: indices of the section's candidates that give it.
        layout: the plan and what it stores; its share group is not divided.
    """

    candidates: tuple[int, ...]
    layout: MatrixLayout


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What can be chosen.

    Attributes:
        own: the recipe's own plan of each matrix that it codes, groups not divided.
        of: for each matrix that is chosen for, in storage order, what it may get.
        units: those matrices, each with all that get the same candidate, in storage order.
        locked: matrices that keep their own plan as the recipe says.
        left: matrices that keep it because no candidate fits them.
    """

    own: Mapping[str, MatrixPlan]
    of: Mapping[str, tuple[Offer, ...]]
    units: tuple[tuple[str, ...], ...]
    locked: tuple[str, ...]
    left: tuple[str, ...]


def find_offers(recipe: Recipe, allocation: Allocation, inventory: Inventory) -> Offers:
    """What each matrix of a model may get.

    Args:
        recipe: the recipe, whose plans the matrices have without a choice.
        allocation: its section.
        inventory: the model, as `open_model` gave it for the recipe.

    Raises:
        RecipeError: a pattern or a rule matches nothing, a candidate fits no matrix, or a plan
            needs statistics that the recipe does not ask for.
    """
    tensors = rule_candidates(inventory)
    facts = {fact.name: fact for fact in inventory.matrices()}
    trees = merged_trees(recipe.tree, recipe.rules, tensors)
    plans = _Plans()
    own = {}
    problems: list[Problem] = []
    for name, tree in trees.items():
        plan, found = plans.of(tree)
        problems += found
        if plan is not None:
            own[name] = plan
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    locked = _locked(allocation, list(own))
    free = [name for name in own if name not in locked]
    coded = [replace(one, coded_by_default=one.name in own) for one in tensors]
    offered: dict[str, dict[int, Offer]] = {name: {} for name in free}
    layouts = LayoutTable()
    refused: dict[str, tuple[PlanCandidate, str | None]] = {}
    fitting: set[str] = set()
    for index, candidate in enumerate(allocation.candidates):
        offered_trees = _trees_of(candidate, trees, coded)
        if candidate.rule is None or not candidate.rule.optional:
            refused.setdefault(candidate.path, (candidate, None))
        for name in free:
            if name not in offered_trees:
                continue
            plan, found = plans.of(offered_trees[name])
            if plan is None:
                if candidate.path in refused:
                    refused[candidate.path] = candidate, found[0].message
                continue
            layout = layouts.layout_of(plan, facts[name].shape, facts[name].dtype)
            if layout.refusal is not None:
                why = f"{layout.refusal[1]}; {name} is {_shape(facts[name])}"
                if candidate.path in refused:
                    refused[candidate.path] = candidate, why
                continue
            fitting.add(candidate.path)
            if plan.autoencoder.reused is not None:
                message = (
                    "this candidate uses the file of a trained decoder, which is not tried here"
                )
                hint = "leave it out, or lock its matrices"
                raise _wrong(candidate, message, hint)
            if plan.needs_statistics and recipe.statistics != "required":
                message = "this candidate needs measured statistics, and the recipe asks for none"
                hint = "add `statistics: required` to the recipe"
                raise _wrong(candidate, message, hint)
            # Plans come from one table: equal ones are one object, and so are their layouts.
            known = offered[name].get(id(layout), Offer(candidates=(), layout=layout))
            offered[name][id(layout)] = replace(known, candidates=(*known.candidates, index))
    for path, (candidate, reason) in refused.items():
        if free and path not in fitting:
            raise _wrong(candidate, "this candidate fits no matrix that is chosen for", reason)
    of = {name: tuple(offers.values()) for name, offers in offered.items() if offers}
    return Offers(
        own=own,
        of=of,
        units=_units(allocation, list(of), facts),
        locked=tuple(name for name in own if name in locked),
        left=tuple(name for name in free if name not in of),
    )


class _Plans:
    """The plan of a tree, one object for all that are equal."""

    def __init__(self) -> None:
        self._of_tree: dict[int, tuple[MapNode, MatrixPlan | None, list[Problem]]] = {}
        self._equal: dict[MatrixPlan, MatrixPlan] = {}

    def of(self, tree: MapNode) -> tuple[MatrixPlan | None, list[Problem]]:
        """The plan, or what is wrong with it."""
        if id(tree) not in self._of_tree:
            plan, problems = check_plan(tree)
            plan = None if plan is None else self._equal.setdefault(plan, plan)
            self._of_tree[id(tree)] = tree, plan, problems  # the tree keeps its identity so
        return self._of_tree[id(tree)][1:]


def _trees_of(
    candidate: PlanCandidate, own: Mapping[str, MapNode], tensors: Sequence[Candidate]
) -> Mapping[str, MapNode]:
    """The tree that a candidate gives to each matrix to which it is offered."""
    if candidate.named is not None:
        return merged_trees(candidate.named.tree, candidate.named.rules, tensors)
    assert candidate.patch is not None
    names = list(own)
    if candidate.rule is not None:
        (chosen,), problems = select([candidate.rule], tensors)
        if problems:
            raise RecipeError(problems)
        names = [tensors[index].name for index in chosen if tensors[index].name in own]
    merged: dict[int, MapNode] = {}
    trees = {}
    for name in names:
        tree = own[name]
        if id(tree) not in merged:
            merged[id(tree)] = merge_maps(tree, candidate.patch)
        trees[name] = merged[id(tree)]
    return trees


def _locked(allocation: Allocation, names: Sequence[str]) -> set[str]:
    """The matrices that keep their own plan."""
    locked: set[str] = set()
    for pattern in allocation.lock:
        found = {name for name in names if pattern.matches(name)}
        if not found:
            raise _nothing(allocation, "lock", pattern, names)
        locked |= found
    return locked


def _units(
    allocation: Allocation, names: Sequence[str], facts: Mapping[str, MatrixFact]
) -> tuple[tuple[str, ...], ...]:
    """The matrices, each with all that get the same candidate."""
    unit_of: dict[str, tuple[object, ...]] = {}
    for number, group in enumerate(allocation.groups):
        for pattern in group:
            word = pattern.exact
            found = False
            for name in names:
                whole = name == word or name.endswith(f".{word}") if word else False
                if not (whole if word else pattern.matches(name)):
                    continue
                found = True
                # Words are parts of one module, patterns go through a layer.
                module = name.removesuffix(word) if word else facts[name].layer
                unit_of.setdefault(name, (number, module))
            if not found:
                raise _nothing(allocation, "groups", pattern, names)
    units: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        units.setdefault(unit_of.get(name, (name,)), []).append(name)
    return tuple(map(tuple, units.values()))


def _nothing(
    allocation: Allocation, key: str, pattern: Pattern, names: Sequence[str]
) -> RecipeError:
    tails = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return RecipeError(
        [
            Problem(
                location=str(allocation.location),
                path=f"allocate.{key}",
                message=f"`{pattern.text}` matches no coded matrix",
                hint=did_you_mean(nearest(pattern.text.lstrip("*."), tails, 1)),
            )
        ]
    )


def _wrong(candidate: PlanCandidate, message: str, hint: str | None) -> RecipeError:
    return RecipeError(
        [Problem(location=str(candidate.location), path=candidate.path, message=message, hint=hint)]
    )


def _shape(fact: MatrixFact) -> str:
    return f"[{fact.shape[0]}, {fact.shape[1]}]"
