"""Which tensors each rule takes, and what is wrong when it takes none."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.match import Pattern
from reallm_compiler.recipe.rule import Rule
from reallm_compiler.recipe.vocabulary import listed, nearest

SHOWN = 24
"""Names that a hint lists at most; those of most models, numbers left out, are fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A tensor that a recipe decides about.

    Attributes:
        name: its name in the checkpoint without `.weight`.
        layer: index of its layer; None outside of the layers.
        is_matrix: it is two-dimensional and can be coded.
        coded_by_default: it is coded unless a rule decides otherwise (a linear layer's weight).
        role: what a matrix is for, such as `head`; None for what is no matrix.
        numel: weights that a matrix holds.
    """

    name: str
    layer: int | None
    is_matrix: bool
    coded_by_default: bool
    role: str | None = None
    numel: int = 0


def select(
    rules: Sequence[Rule], candidates: Sequence[Candidate]
) -> tuple[list[list[int]], list[Problem]]:
    """For each rule the indices of the candidates that it takes, and the problems."""
    model = _Model(candidates)
    chosen: list[list[int]] = []
    problems: list[Problem] = []
    for rule in rules:
        taken, found = _select_one(rule, model)
        chosen.append(taken)
        problems += found
    return chosen, problems


_Asked = tuple[tuple[Pattern, ...], tuple[str, ...] | None, int | Fraction | None, int | None]


class _Model:
    """The candidates with what the search needs: indexes by name and word, number of layers."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.indices: dict[str, list[int]] = {}
        for index, candidate in enumerate(candidates):
            self.indices.setdefault(candidate.name, []).append(index)
        self.layers = 1 + max((c.layer for c in candidates if c.layer is not None), default=-1)
        self.numel = sum(candidate.numel for candidate in candidates if candidate.is_matrix)
        self._found: dict[_Asked, dict[int | None, list[int]]] = {}
        self._sets: dict[str, set[str]] = {}

    @cached_property
    def _by_part(self) -> Mapping[str, list[str]]:
        """Names by their parts between the dots."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.indices:
            for part in name.split("."):
                found[part].append(name)
        return found

    def _with_part(self, part: str) -> set[str]:
        """Names that have a part between dots."""
        if part not in self._sets:
            self._sets[part] = set(self._by_part.get(part, ()))
        return self._sets[part]

    def is_matrix(self, index: int) -> bool:
        """Whether the candidate at `index` can be coded."""
        return self.candidates[index].is_matrix

    def matching(
        self,
        patterns: tuple[Pattern, ...],
        roles: tuple[str, ...] | None = None,
        min_fraction: int | Fraction | None = None,
        min_numel: int | None = None,
    ) -> Mapping[int | None, Sequence[int]]:
        """Indices of the candidates that any pattern matches, by layer, each layer's in order.

        Rules for single layers often repeat the same patterns, which are searched once.
        """
        asked = (patterns, roles, min_fraction, min_numel)
        if asked not in self._found:
            self._found[asked] = self._search(*asked)
        return self._found[asked]

    def _search(
        self,
        patterns: tuple[Pattern, ...],
        roles: tuple[str, ...] | None,
        min_fraction: int | Fraction | None,
        min_numel: int | None,
    ) -> dict[int | None, list[int]]:
        if min_fraction is not None or min_numel is not None:
            wide = self.matching(patterns, roles)
            least = max(math.ceil((min_fraction or 0) * self.numel), min_numel or 1)
            fits = {index for index in _flat(wide) if self.candidates[index].numel >= least}
        elif roles is not None:
            wide = self.matching(patterns)
            fits = {index for index in _flat(wide) if self.candidates[index].role in roles}
        else:
            names = {name for pattern in patterns for name in self._names(pattern)}
            fits = {index for name in names for index in self.indices[name]}
        by_layer: dict[int | None, list[int]] = {}
        for index in sorted(fits):
            by_layer.setdefault(self.candidates[index].layer, []).append(index)
        return by_layer

    def _names(self, pattern: Pattern) -> Iterable[str]:
        """The names that a pattern matches."""
        if pattern.exact is not None:  # a recipe may hold one rule for each matrix
            return [pattern.exact] if pattern.exact in self.indices else []
        if pattern.text == "*":
            return self.indices
        rare = sorted(pattern.parts, key=lambda part: len(self._by_part.get(part, ())))[:2]
        names = set.intersection(*map(self._with_part, rare)) if rare else self.indices
        return filter(pattern.matches, names)


def _select_one(rule: Rule, model: _Model) -> tuple[list[int], list[Problem]]:
    taken = model.indices.get(rule.only or "", [])  # the rules of single matrices
    if taken and (rule.patch is None or rule.optional or model.is_matrix(taken[0])):
        return taken, []
    by_layer = model.matching(rule.match)
    if rule.roles is not None:
        named, by_layer = by_layer, model.matching(rule.match, rule.roles)
        if named and not by_layer and not rule.optional:
            return [], [_no_role(rule, model, _flat(named))]
    if rule.min_fraction is not None or rule.min_numel is not None:
        sizes = (rule.min_fraction, rule.min_numel)
        named, by_layer = by_layer, model.matching(rule.match, rule.roles, *sizes)
        if named and not by_layer and not rule.optional:
            return [], [_too_small(rule, model, _flat(named))]
    problems = []
    wanted = set(by_layer)
    if rule.layers is not None:
        wanted = set()
        for span in rule.layers:
            layers = span.resolve(model.layers)
            wanted.update(layers)
            if not layers and by_layer:
                have = f"layers 0 to {model.layers - 1}" if model.layers else "no layers"
                message = f"`{span}` is not a layer of this model, which has {have}"
                problems.append(_problem(rule, "layers", message))
    before = {layer: by_layer[layer] for layer in by_layer.keys() & wanted}
    out: set[int] = set()
    for entry in rule.exceptions:
        found = model.matching((entry,))
        hit = set(_flat(found, before)).intersection(_flat(before, found))
        if not hit and before:
            message = f"the exception `{entry.text}` excludes nothing of what `match` matches"
            names = [model.candidates[index].name for index in _flat(before)]
            problems.append(_problem(rule, "except", message, _near([entry], names)))
        out |= hit
    taken = sorted(index for index in _flat(before) if index not in out)
    if rule.optional:
        return taken, []
    if not taken and not problems:
        problems.append(_nothing(rule, model, sorted(_flat(by_layer))))
    elif rule.patch is not None and taken and not any(model.is_matrix(p) for p in taken):
        name = model.candidates[taken[0]].name
        message = f"`set` applies to no matrix: `{name}` cannot be coded"
        problems.append(_problem(rule, "set", message, "use `keep`, or match matrices"))
    return taken, problems


def _no_role(rule: Rule, model: _Model, taken: Sequence[int]) -> Problem:
    roles = dict.fromkeys(model.candidates[index].role for index in taken)
    here = [role for role in roles if role is not None]
    message = f"no tensor that the rule matches has the role {listed(rule.roles or ())}"
    return _problem(rule, "role", message, f"roles here: {listed(here)}" if here else None)


def _too_small(rule: Rule, model: _Model, taken: Sequence[int]) -> Problem:
    largest = max((model.candidates[index] for index in taken), key=lambda one: one.numel)
    part = 100 * largest.numel / max(model.numel, 1)
    message = "no tensor that the rule matches is that large a part of the model's weights"
    hint = f"the largest is `{largest.name}` with {part:.3g} %, {largest.numel:,} weights"
    key = "min_fraction" if rule.min_numel is None else "min_numel"
    return _problem(rule, key, message, hint)


def _flat(
    by_layer: Mapping[int | None, Sequence[int]], layers: Iterable[int | None] | None = None
) -> list[int]:
    """Indices of the given layers, or of all."""
    wanted = by_layer if layers is None else layers
    return [index for layer in wanted for index in by_layer.get(layer, ())]


def _nothing(rule: Rule, model: _Model, by_name: Sequence[int]) -> Problem:
    if not by_name:
        texts = listed(pattern.text for pattern in rule.match)
        hint = _near(rule.match, list(model.indices))
        return _problem(rule, "match", f"no tensor of this model matches {texts}", hint)
    if rule.layers is not None and all(model.candidates[p].layer is None for p in by_name):
        name = model.candidates[by_name[0]].name
        return _problem(rule, "layers", f"`{name}` is in no layer; remove `layers`")
    message = "after `layers` and `except` nothing is left of what `match` matches"
    return _problem(rule, "match", message)


def _problem(rule: Rule, key: str, message: str, hint: str | None = None) -> Problem:
    if key in ("match", "except", "role", "min_fraction", "min_numel"):
        allow = "`optional: true` allows it to match nothing"
        between = " " if hint and hint.endswith("?") else "; "
        hint = f"{hint}{between}{allow}" if hint else allow
    location = str(rule.location_of(key))
    return Problem(location=location, path=f"{rule.path}.{key}", message=message, hint=hint)


def _near(patterns: Sequence[Pattern], names: Sequence[str]) -> str | None:
    """The nearest names, numbers written as `*`, so that a model has few of them."""
    kinds = list(dict.fromkeys(re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", name) for name in names))
    for pattern in patterns:
        if pattern.text.endswith((".weight", "*weight")):
            return "names are written without `.weight`"
        parts = pattern.text.removeprefix("re:").lstrip("*.").split(".")
        tails = [".".join(kind.split(".")[-len(parts) :]) for kind in kinds]
        near = nearest(".".join(parts), tails)
        if near is not None:
            full = kinds[tails.index(near)]
            return f"did you mean `{full if full == near else f'*.{near}'}`?"
    if not kinds:
        return None
    more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    return f"names here: {listed(kinds[:SHOWN])}{more}"
