"""The lock: a choice as an ordinary recipe, which says every plan in full.

Its document is the recipe's own with one rule more for each plan that was chosen, which names its
matrices. The text has each of them on its own line, with what it takes and costs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reallm_compiler.recipe import Recipe
from reallm_compiler.recipe.match import pattern_of
from reallm_compiler.recipe.plain_yaml import on_one_line, to_yaml
from reallm_compiler.stages import MatrixPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What was chosen for a matrix.

    Attributes:
        name: the matrix.
        candidate: label of the candidate.
        own: the plan that the recipe gives it.
        plan: the plan that it gets; groups are not divided.
    """

    name: str
    candidate: str
    own: MatrixPlan
    plan: MatrixPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class LockRule:
    """A rule of a lock: matrices that get one candidate."""

    candidate: str
    names: tuple[str, ...]
    set: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """The rule as plain data."""
        return {"match": [_pattern(name) for name in self.names], "set": dict(self.set)}


def difference(own: MatrixPlan, plan: MatrixPlan) -> dict[str, Any]:
    """The fields by which a rule makes one plan of another."""
    before, after = own.plain(), plan.plain()
    patch: dict[str, Any] = {}
    for key, value in after.items():
        old = before[key]
        if old == value:
            continue
        maps = isinstance(old, Mapping) and isinstance(value, Mapping)
        if maps and old["kind"] == value["kind"]:
            value = {name: item for name, item in value.items() if old[name] != item}
        patch[key] = value
    return patch


def lock_rules(chosen: Sequence[Chosen], order: Sequence[str]) -> tuple[LockRule, ...]:
    """The rules that say a choice.

    Args:
        chosen: of each matrix, in storage order.
        order: labels of candidates, in the order of the rules.
    """
    patches: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}
    found: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    for one in chosen:
        key = (id(one.own), id(one.plan))
        if key not in patches:
            patch = difference(one.own, one.plan)
            patches[key] = json.dumps(patch), patch
        text, patch = patches[key]
        found.setdefault((one.candidate, text), (patch, []))[1].append(one.name)
    rank = {label: number for number, label in enumerate(order)}
    rules = [
        LockRule(candidate=label, names=tuple(members), set=patch)
        for (label, _), (patch, members) in found.items()
    ]
    return tuple(sorted(rules, key=lambda rule: rank[rule.candidate]))  # is stable


def lock_document(recipe: Recipe, rules: Sequence[LockRule]) -> dict[str, Any]:
    """The lock as plain data."""
    document = dict(recipe.document)
    document["rules"] = [*document["rules"], *(rule.plain() for rule in rules)]
    return document


def lock_text(
    recipe: Recipe, rules: Sequence[LockRule], head: Sequence[str], notes: Mapping[str, str]
) -> str:
    """The lock as YAML with comments; it says the same as `lock_document`.

    Args:
        recipe: the recipe that chose.
        rules: what it chose.
        head: lines of the comment at its head.
        notes: the comment on each matrix.
    """
    document = dict(recipe.document)
    own = document.pop("rules")
    lines = [f"# {line}".rstrip() for line in head]
    lines.append(to_yaml(document))
    lines.append("rules:" if own or rules else "rules: []")
    if own:
        lines.append(to_yaml(own, 2))
    for rule in rules:
        lines += _rule_lines(rule, notes)
    return "\n".join(lines) + "\n"


def _rule_lines(rule: LockRule, notes: Mapping[str, str]) -> Iterator[str]:
    count = f"{len(rule.names):,} {'matrix' if len(rule.names) == 1 else 'matrices'}"
    yield f"  # {_comment(rule.candidate)}: {count}"
    yield "  - match:"
    patterns = [on_one_line(_pattern(name)) for name in rule.names]
    width = max(map(len, patterns))
    for name, pattern in zip(rule.names, patterns, strict=True):
        yield f"      - {pattern.ljust(width)}  # {notes[name]}"
    yield f"    set: {on_one_line(rule.set)}"


def _comment(text: str) -> str:
    """A text that stays on one line of a comment."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _pattern(name: str) -> str:
    """A pattern that matches one name and no other."""
    plain = pattern_of(name) if name and not name.startswith("re:") else None
    return name if plain is not None and plain.exact == name else f"re:{re.escape(name)}"
