"""From the node of an `allocate` section to what it says, or what is wrong with it.

A candidate is checked over the defaults and over what each rule makes of them: it is offered to
all matrices, and need not fit each. A value that is wrong by itself is wrong in any case; of a
grid those combinations are left out that fit nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pydantic import ValidationError

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe.allocation import (
    SECTION,
    AllocateForm,
    Allocation,
    NamedPlan,
    PlanCandidate,
    Target,
    target_of_bits,
    target_of_bytes,
)
from reallm_compiler.recipe.check import check_plan, unknown_in_rule
from reallm_compiler.recipe.grid import variants
from reallm_compiler.recipe.match import pattern_of
from reallm_compiler.recipe.messages import problems_of
from reallm_compiler.recipe.nodes import ListNode, MapNode, Node, ScalarNode, problem_at, to_plain
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.plain_yaml import on_one_line
from reallm_compiler.recipe.rule import Rule, RuleForm, rule_of

LoadNamed = Callable[[ScalarNode], NamedPlan]
"""The recipe that a candidate names; raises RecipeError."""

_TARGETS = ("bytes", "bits")
_RULE_KEYS = frozenset(info.alias or name for name, info in RuleForm.model_fields.items())


def merge_sections(trees: Sequence[MapNode]) -> MapNode | None:
    """The section of recipes that extend each other, the most basic first; later keys win."""
    merged: MapNode | None = None
    for tree in trees:
        node = tree.fields.get(SECTION)
        if not isinstance(node, MapNode):
            continue
        below = {} if merged is None else dict(merged.fields)
        if any(key in node.fields for key in _TARGETS):
            below = {key: value for key, value in below.items() if key not in _TARGETS}
        merged = replace(node, fields={**below, **node.fields})
    return merged


def check_allocation(
    node: MapNode, defaults: MapNode, rules: Sequence[Node], load_named: LoadNamed
) -> tuple[Allocation | None, list[Problem]]:
    """What a merged section says, or what is wrong with it; its own form has been checked.

    Args:
        node: the section.
        defaults: the plan that candidates are put over.
        rules: of the recipe, which make other plans of it that candidates are put over, too.
        load_named: finds the recipe that a candidate names.
    """
    try:
        form = AllocateForm.model_validate(to_plain(node))
    except ValidationError:
        return None, []  # a file's own form has the complaint
    bases = _bases_of(defaults, rules)
    problems: list[Problem] = []
    listed = node.fields.get("candidates")
    items = listed.items if isinstance(listed, ListNode) else ()
    if not items:
        problems.append(
            Problem(
                location=str(node.location if listed is None else listed.location),
                path=f"{node.path}.candidates",
                message="there are no candidates to choose from",
                hint="name recipes or parts of plans, such as `candidates: [reallm-2bit, "
                "reallm-3bit]`",
            )
        )
    candidates: list[PlanCandidate] = []
    for item in items:
        try:
            candidates += _candidates(item, bases, load_named)
        except RecipeError as error:
            problems += error.problems
    if problems:
        return None, problems
    return Allocation(
        target=_target(form, node),
        scope=form.scope,
        candidates=tuple(_distinct(candidates)),
        groups=tuple(tuple(map(pattern_of, group)) for group in form.groups),
        lock=tuple(map(pattern_of, form.lock or ())),
        location=node.location,
    ), []


def _target(form: AllocateForm, node: MapNode) -> Target | None:
    if form.bytes is not None:
        written = node.fields["bytes"]
        text = written.value if isinstance(written, ScalarNode) else form.bytes
        return target_of_bytes(str(text), form.scope)
    return None if form.bits is None else target_of_bits(form.bits, form.scope)


def _distinct(candidates: Iterable[PlanCandidate]) -> Iterable[PlanCandidate]:
    """Each candidate once: a grid may hold what was written before it."""
    seen: set[tuple[str, str]] = set()
    for one in candidates:
        key = (one.label, "" if one.rule is None else one.rule.path)
        if key not in seen:
            seen.add(key)
            yield one


def _candidates(item: Node, bases: Sequence[MapNode], load_named: LoadNamed) -> list[PlanCandidate]:
    if isinstance(item, ScalarNode):
        named = load_named(item)
        return [
            PlanCandidate(
                label=str(item.value),
                named=named,
                patch=None,
                rule=None,
                location=item.location,
                path=item.path,
            )
        ]
    assert isinstance(item, MapNode)
    rule, patch = None, item
    if item.fields and set(item.fields) & _RULE_KEYS:
        rule = _rule(item)
        assert rule.patch is not None
        patch = rule.patch
    return [
        PlanCandidate(
            label=on_one_line(to_plain(variant)),
            named=None,
            patch=variant,
            rule=rule,
            location=item.location,
            path=item.path,
        )
        for variant in _fitting(patch, bases)
    ]


def _rule(item: MapNode) -> Rule:
    """A candidate that is offered to some matrices.

    Raises:
        RecipeError: it is not written as a rule with `set`.
    """
    try:
        form = RuleForm.model_validate(to_plain(item))
    except ValidationError as error:
        raise RecipeError(problems_of(error, item, unknown_in_rule)) from None
    if form.set is None:
        raise _wrong(item, "a candidate that is a rule needs `set`; `keep` is no candidate")
    return rule_of(form, item)


def _fitting(patch: MapNode, bases: Sequence[MapNode]) -> list[MapNode]:
    """The parts of a plan that a grid spans, less those that fit no base.

    Raises:
        RecipeError: a value is wrong by itself, or nothing is left.
    """
    try:
        spanned = variants(patch)
    except ValueError as error:
        raise _wrong(patch, str(error)) from None
    fitting: list[MapNode] = []
    problems: dict[tuple[str, str], Problem] = {}
    first: list[Problem] = []
    for variant in spanned:
        found = _problems(variant, bases)
        if not found:
            fitting.append(variant)
            continue
        first = first or found
        for problem in found:
            if not _is_of_combination(problem, variant):
                problems.setdefault((problem.location, problem.message), problem)
    if problems or not fitting:
        raise RecipeError(list(problems.values()) or first)
    return fitting


def _problems(variant: MapNode, bases: Sequence[MapNode]) -> list[Problem]:
    """What is wrong with a part of a plan over the first base; nothing if it fits any."""
    first: list[Problem] = []
    for base in bases:
        plan, found = check_plan(merge_maps(base, variant))
        if plan is not None:
            return []
        own = [one for one in found if one.path.startswith(variant.path)]
        first = first or own or found
    return first


def _is_of_combination(problem: Problem, variant: MapNode) -> bool:
    """Whether values are wrong together that may be right with others."""
    stages = {
        one.path
        for node in variant.fields.values()
        for one in (node.items if isinstance(node, ListNode) else (node,))
        if isinstance(one, MapNode)
    }
    if "`kind`" in problem.message:
        return False
    return problem.path == variant.path or problem.path in stages


def _wrong(node: Node, message: str) -> RecipeError:
    return RecipeError([problem_at(node, message)])


def _bases_of(defaults: MapNode, rules: Sequence[Node]) -> list[MapNode]:
    """The defaults, and what each rule and all rules together make of them."""
    found, together = [defaults], defaults
    for rule in rules:
        patch = rule.fields.get("set") if isinstance(rule, MapNode) else None
        if isinstance(patch, MapNode):
            found.append(merge_maps(defaults, patch))
            together = merge_maps(together, patch)
    return [*found, together]
