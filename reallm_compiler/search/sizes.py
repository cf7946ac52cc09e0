"""Bytes of choices: a sum over matrices for the program, and the planner's own for the file.

What a matrix adds to a file is its sections with their padding, their rows in the table and its
row in the document; what several share (a table of a group, the text of a plan) is an item. The
sum is right but for a few bytes: offsets and counts are written in their shortest form. The plan
of the chosen recipe has the bytes of the file, and the difference corrects the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reallm_compiler.planning.model import Plan
from reallm_compiler.recipe.allocation import Scope, Target
from reallm_compiler.recipe.resolve import learned_part
from reallm_compiler.search.lock import difference
from reallm_compiler.search.offers import Offer, Offers
from reallm_compiler.search.program import Choice, Option, Program
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout
from reallm_formats import SectionEntry, canonical, names, v1

_OFFSET = 1 << 31
"""An offset of five bytes, as most are."""


def stored_bytes(plan: Plan, scope: Scope) -> int:
    """What a plan takes, by the planner's own numbers."""
    if scope == "file":
        return plan.layout.file_bytes
    return plan.budget().totals.coded_bytes


def limit_of(target: Target, plan: Plan) -> int:
    """A target in bytes; a rate counts the weights of a plan, which all choices have."""
    if target.unit == "bytes":
        return int(target.amount)
    totals = plan.budget().totals
    weights = totals.numel if target.scope == "coded" else totals.parameters
    return int(target.amount * weights // 8)


@dataclass(frozen=True)
class Choices:
    """The program of a model, and what its numbers stand for.

    Attributes:
        program: units in storage order.
        offers: for each unit and option, the offer that each of its matrices takes, by index.
        candidates: for each unit and option, the candidate, by index.
    """

    program: Program
    offers: tuple[tuple[tuple[int, ...], ...], ...]
    candidates: tuple[tuple[int, ...], ...]

    def uniform(self, offers: Offers, candidate: int) -> Choice | None:
        """The choice of one candidate for all units; None where one cannot get it."""
        choice = []
        for unit, options in zip(offers.units, self.offers, strict=True):
            found = [
                index
                for index, option in enumerate(options)
                if all(
                    candidate in offers.of[name][offer].candidates
                    for name, offer in zip(unit, option, strict=True)
                )
            ]
            if not found:
                return None
            choice.append(found[0])
        return tuple(choice)


def program_of(offers: Offers, damage: Mapping[str, Sequence[float]], scope: Scope) -> Choices:
    """The program that chooses among offers.

    Args:
        offers: what each matrix may get.
        damage: of each offer of each matrix, in their order.
        scope: what bytes count.

    Raises:
        ValueError: the matrices of a unit have no candidate in common; holds their names.
    """
    sizes = _Sizes(offers.own, scope)
    units, taken, candidates = [], [], []
    for names_ in offers.units:
        options: dict[tuple[int, ...], tuple[int, Option]] = {}
        for candidate in _common(offers, names_):
            chosen = tuple(_offer_of(offers.of[name], candidate) for name in names_)
            if chosen in options:
                continue
            parts = [
                sizes.of(name, offers.of[name][index])
                for name, index in zip(names_, chosen, strict=True)
            ]
            loss = sum(damage[name][index] for name, index in zip(names_, chosen, strict=True))
            items = sorted({item for _, used in parts for item in used})
            nbytes = sum(own for own, _ in parts)
            options[chosen] = candidate, Option(nbytes, max(loss, 0.0), tuple(items))
        if not options:
            raise ValueError(", ".join(names_))
        units.append([option for _, option in options.values()])
        taken.append(tuple(options))
        candidates.append(tuple(candidate for candidate, _ in options.values()))
    return Choices(Program(units, sizes.items), tuple(taken), tuple(candidates))


def _common(offers: Offers, unit: Sequence[str]) -> Iterable[int]:
    """Candidates that all matrices of a unit may get, in their order."""
    sets = [{c for offer in offers.of[name] for c in offer.candidates} for name in unit]
    return sorted(set.intersection(*sets))


def _offer_of(offers: Sequence[Offer], candidate: int) -> int:
    return next(i for i, offer in enumerate(offers) if candidate in offer.candidates)


class _Sizes:
    """Bytes of offers, and the items that they use.

    Attributes:
        items: bytes of each item.
    """

    def __init__(self, own: Mapping[str, MatrixPlan], scope: Scope) -> None:
        self._own = own
        self._whole = scope == "file"
        self._item_of: dict[object, int] = {}
        self._group_of: dict[int, object] = {}
        self._rows: dict[tuple[int, int], int] = {}
        self.items: list[int] = []

    def of(self, name: str, offer: Offer) -> tuple[int, tuple[int, ...]]:
        """Bytes of a matrix under an offer without items, and its items."""
        layout = offer.layout
        plan = layout.plan
        owner = names.MATRIX + name
        key = (id(layout), len(owner.encode()))
        if key not in self._rows:
            self._rows[key] = self._sections(owner, layout.own_sections)
        items = []
        if plan.share is not None and layout.shared_sections:
            items.append(self._item(self._group(plan), lambda: self._shared(layout)))
        if self._whole:
            own = self._own[name]
            items.append(self._item(("plan", id(plan)), lambda: _packed(plan.plain())))
            items.append(self._item(("rule", id(own), id(plan)), lambda: _rule(own, plan)))
        return self._rows[key], tuple(items)

    def _item(self, key: object, nbytes: Callable[[], int]) -> int:
        if key not in self._item_of:
            self._item_of[key] = len(self.items)
            self.items.append(nbytes())
        return self._item_of[key]

    def _group(self, plan: MatrixPlan) -> object:
        """What decides about the group of a plan."""
        if id(plan) not in self._group_of:
            self._group_of[id(plan)] = ("group", plan.share, learned_part(plan))
        return self._group_of[id(plan)]

    def _shared(self, layout: MatrixLayout) -> int:
        return self._sections(f"{names.SHARE}{layout.plan.share}", layout.shared_sections)

    def _sections(self, owner: str, specs: Iterable[SectionSpec]) -> int:
        return sum(self._section(f"{owner}/{spec.role}", spec) for spec in specs)

    def _section(self, name: str, spec: SectionSpec) -> int:
        if not self._whole:
            return spec.nbytes
        row = SectionEntry(
            name=name,
            dtype=spec.dtype,
            shape=spec.shape,
            offset=_OFFSET,
            sha256=bytes(v1.DIGEST_BYTES),
        )
        return v1.align(spec.nbytes) + _packed(row.plain())


def _rule(own: MatrixPlan, plan: MatrixPlan) -> int:
    return _packed({"match": [], "set": difference(own, plan)})


def _packed(plain: object) -> int:
    return len(canonical.pack(plain))
