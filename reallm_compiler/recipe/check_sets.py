"""What is wrong with the parts of plans in a recipe: each rule's `set`, before it meets a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.check import built_in_plan, check_plan
from reallm_compiler.recipe.nodes import ListNode, MapNode, Node, ScalarNode, to_plain
from reallm_compiler.recipe.patch import merge_all, merge_maps
from reallm_compiler.recipe.vocabulary import keys_of, stages

_NEIGHBOURS = 64
"""A rule is tried after so many single rules before it; more would take long and find no more."""

_ENOUGH = 100
"""After so many problems no rule is given the benefit of the doubt, which takes time."""


def rule_nodes(tree: MapNode) -> tuple[Node, ...]:
    """The rules of one file."""
    node = tree.fields.get("rules")
    return node.items if isinstance(node, ListNode) else ()


def defaults_node(tree: MapNode) -> MapNode | None:
    """The defaults of one file."""
    node = tree.fields.get("defaults")
    return node if isinstance(node, MapNode) else None


def patches(trees: Sequence[MapNode]) -> list[MapNode]:
    """All parts of plans in some files: the defaults, and the `set` of each rule."""
    found = [defaults for tree in trees if (defaults := defaults_node(tree)) is not None]
    for tree in trees:
        for rule in rule_nodes(tree):
            patch = rule.fields.get("set") if isinstance(rule, MapNode) else None
            if isinstance(patch, MapNode):
                found.append(patch)
    return found


def check_sets(rules: Sequence[Node], defaults: MapNode) -> list[Problem]:
    """What is wrong with the `set` of each rule, reported at the rule.

    A rule may build on an earlier one (the first sets a kind, the second a parameter of it), so a
    rule is wrong only if it fits neither the defaults nor any rule before it.
    """
    plan, of_defaults = check_plan(defaults)
    known = {problem.message for problem in of_defaults if problem.path == defaults.path}
    problems: list[Problem] = []
    earlier: list[MapNode] = []
    together = _Together(defaults)
    right: set[str] = set()  # what was found right once: a recipe may have a rule for each matrix
    for rule in rules:
        patch = rule.fields.get("set") if isinstance(rule, MapNode) else None
        if not isinstance(patch, MapNode):
            continue
        text = repr(to_plain(patch))
        found = [] if text in right else _own_problems(defaults, patch)
        if not found:
            right.add(text)
        elif plan is not None and earlier and len(problems) < _ENOUGH:
            merged = together.all(earlier)
            if _fits_an_earlier(earlier, merged, defaults, patch):
                found = []
            elif _builds_on(earlier, patch) and not _knows(defaults, patch):
                found = _own_problems(merged, patch) or found
        problems += [problem for problem in found if problem.message not in known]
        earlier.append(patch)
    return problems


class _Together:
    """The defaults with the parts of all earlier rules put over them, merged when asked for."""

    def __init__(self, defaults: MapNode) -> None:
        self._tree = defaults
        self._count = 0

    def all(self, patches: Sequence[MapNode]) -> MapNode:
        """All of `patches` put over the defaults; the next call has more of them."""
        self._tree = merge_all((self._tree, *patches[self._count :]))
        self._count = len(patches)
        return self._tree


def check_alone(patch: MapNode) -> list[Problem]:
    """What is wrong with a part of a plan whatever it is put over.

    For recipes whose base cannot be read: only stages that name their kind can be judged.
    """
    fields = {
        key: value
        for key, value in patch.fields.items()
        if key not in stages() or (isinstance(value, MapNode) and "kind" in value.fields)
    }
    merged = merge_maps(built_in_plan(), replace(patch, fields=fields))
    return [problem for problem in check_plan(merged)[1] if problem.path != patch.path]


def _own_problems(base: MapNode, patch: MapNode) -> list[Problem]:
    _, problems = check_plan(merge_maps(base, patch))
    file = patch.location.file
    return [
        problem
        for problem in problems
        if problem.path.startswith(patch.path)
        and (problem.location == file or problem.location.startswith(f"{file}:"))
    ]


def _fits_an_earlier(
    earlier: Sequence[MapNode], together: MapNode, defaults: MapNode, patch: MapNode
) -> bool:
    """Whether the patch is right after an earlier rule, or after all of them together."""
    bases = [together, *(merge_maps(defaults, one) for one in reversed(earlier[-_NEIGHBOURS:]))]
    return any(check_plan(merge_maps(base, patch))[0] is not None for base in bases)


def _knows(base: MapNode, patch: MapNode) -> bool:
    """Whether the kinds of `base` have all parameters that the patch sets without naming a kind."""
    for stage, node in patch.fields.items():
        if stage in stages() and isinstance(node, MapNode) and "kind" not in node.fields:
            below = base.fields.get(stage)
            kind = below.fields.get("kind") if isinstance(below, MapNode) else None
            model = stages()[stage].get(str(kind.value)) if isinstance(kind, ScalarNode) else None
            if model is None or not set(node.fields) <= set(keys_of(model)):
                return False
    return True


def _builds_on(earlier: Sequence[MapNode], patch: MapNode) -> bool:
    """Whether the patch leaves a stage's kind to an earlier rule."""
    kindless = [
        stage
        for stage, node in patch.fields.items()
        if isinstance(node, MapNode) and "kind" not in node.fields
    ]
    return any(
        isinstance(before := one.fields.get(stage), MapNode) and "kind" in before.fields
        for one in earlier
        for stage in kindless
    )
