"""A model, what its matrices may get and what that costs: from a choice to a recipe and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.planning.build import build
from reallm_compiler.planning.model import Plan
from reallm_compiler.recipe import Recipe, load_recipe
from reallm_compiler.recipe.allocation import Allocation, Scope, Target
from reallm_compiler.search.damage import Damage
from reallm_compiler.search.joint import Joint
from reallm_compiler.search.lock import Chosen, LockRule, lock_document, lock_rules, lock_text
from reallm_compiler.search.offers import Offers
from reallm_compiler.search.program import Choice, Program
from reallm_compiler.search.report import Lock, Point, Share
from reallm_compiler.search.sizes import limit_of, program_of, stored_bytes
from reallm_compiler.search.solver import bytes_without_items, cheapest, frontier

POINTS = 12
"""Points of the frontier."""


class Search:
    """Chooses for one model.

    Args:
        recipe: the recipe.
        allocation: its section.
        inventory: the model, as `open_model` gave it.
        offers: what each matrix may get.
        damage: of each offer of each matrix.
        scope: what bytes count.

    Raises:
        RecipeError: the matrices of a group have no candidate in common.
    """

    def __init__(
        self,
        recipe: Recipe,
        allocation: Allocation,
        inventory: Inventory,
        offers: Offers,
        damage: Mapping[str, Sequence[Damage]],
        scope: Scope,
    ) -> None:
        self._recipe = recipe
        self._labels = [candidate.label for candidate in allocation.candidates]
        self._inventory = inventory
        self._offers = offers
        self._kl = {name: [one.kl for one in several] for name, several in damage.items()}
        self._scope = scope
        self._sizes: dict[Choice, int] = {}
        try:
            self._choices = program_of(offers, self._kl, scope)
        except ValueError as error:
            problem = Problem(
                location=str(allocation.location),
                path="allocate.groups",
                message=f"no candidate fits all of {error}, which are to get the same",
            )
            raise RecipeError([problem]) from None
        taken = [
            list(zip(unit, option, strict=True))
            for unit, options in zip(offers.units, self._choices.offers, strict=True)
            for option in options
        ]
        self._joint = Joint.of(self._choices.program, taken, damage)

    @property
    def program(self) -> Program:
        """What is chosen from, as numbers."""
        return self._joint.program

    def choose(self, target: Target) -> Choice:
        """The choice for a target.

        Raises:
            SmallestError: no choice fits.
        """
        return self._joint.choose(self.limit(target), self.exact)

    def exact(self, choice: Choice) -> int:
        """Bytes of a choice, by the planner's own numbers."""
        if choice not in self._sizes:
            self._sizes[choice] = stored_bytes(self.plan(choice), self._scope)
        return self._sizes[choice]

    def plan(self, choice: Choice) -> Plan:
        """The plan of a choice's recipe."""
        recipe = load_recipe(lock_document(self._recipe, self._rules(choice)))
        return build(replace(recipe, files=self._recipe.files), self._inventory)

    def limit(self, target: Target) -> int:
        """A target in bytes."""
        return limit_of(target, self._any_plan)

    def point(self, choice: Choice, label: str = "") -> Point:
        """The sizes and the damage of a choice."""
        return Point(
            label=label,
            nbytes=self.exact(choice),
            numel=self._numel,
            kl=self._joint.damage(choice),
        )

    def frontier(self) -> tuple[Point, ...]:
        """Choices from the smallest to the largest, each the best of its size but for a little."""
        points = []
        for first in frontier(self.program, POINTS):
            nbytes = bytes_without_items(self.program, first)
            best = self._joint.settled(first, partial(cheapest, limit=nbytes))
            points.append(self.point(best))
        falling: list[Point] = []
        for point in sorted(points, key=lambda point: (point.nbytes, point.kl)):
            if not falling or point.kl < falling[-1].kl:
                falling.append(point)
        return tuple(falling)

    def uniform(self) -> tuple[Point, ...]:
        """The candidates that all matrices can get alike, the smallest first."""
        points = []
        for number, label in enumerate(self._labels):
            choice = self._choices.uniform(self._offers, number)
            if choice is not None:
                points.append(self.point(choice, label))
        return tuple(sorted(points, key=lambda point: point.nbytes))

    def lock(self, target: Target, choice: Choice, head: Sequence[str]) -> Lock:
        """A choice as a recipe.

        Args:
            target: what was asked for.
            choice: what was chosen.
            head: lines of the comment at its head, before those of what was chosen.
        """
        plan = self.plan(choice)
        budget = plan.budget()
        rows = {row.name: row for row in budget.matrices}
        chosen = list(self._chosen(choice))
        shares: dict[str, Share] = {}
        for label in self._labels:
            mine = [rows[one.name] for one in chosen if one.candidate == label]
            if mine:
                shares[label] = Share(
                    matrices=len(mine),
                    numel=sum(row.numel for row in mine),
                    nbytes=sum(row.nbytes for row in mine),
                )
        kl = self._kl_of(choice)
        point = self.point(choice)
        notes = {
            one.name: f"{float(rows[one.name].exact_bits):.4f} bits, KL {kl[one.name]:.3g}"
            for one in chosen
        }
        totals = budget.totals
        lines = [
            *head,
            f"Target:  {target.text} {'bits per weight' if target.unit == 'bits' else ''}".rstrip()
            + f", counted of {'the file' if target.scope == 'file' else 'coded matrices'}",
            f"Size:    {totals.file_bytes:,} bytes, {float(totals.exact_bits):.6f} exact bits",
            f"Damage:  KL {point.kl:.4g} nats per token, predicted for {len(chosen):,} matrices",
        ]
        rules = lock_rules(chosen, self._labels)
        return Lock(
            target=target,
            limit=self.limit(target),
            path=None,
            text=lock_text(self._recipe, rules, lines, notes),
            point=point,
            budget=budget,
            candidates=shares,
            matrices={one.name: (one.candidate, kl[one.name]) for one in chosen},
        )

    @cached_property
    def _any_plan(self) -> Plan:
        return self.plan(tuple(0 for _ in self.program.units))

    @cached_property
    def _numel(self) -> int:
        totals = self._any_plan.budget().totals
        return totals.parameters if self._scope == "file" else totals.numel

    def _kl_of(self, choice: Choice) -> dict[str, float]:
        return {name: self._kl[name][index] for name, index in self._taken(choice)}

    def _taken(self, choice: Choice) -> Iterator[tuple[str, int]]:
        """Each matrix with the index of the offer that it gets."""
        for unit, options, index in zip(
            self._offers.units, self._choices.offers, choice, strict=True
        ):
            yield from zip(unit, options[index], strict=True)

    def _chosen(self, choice: Choice) -> Iterator[Chosen]:
        """What each matrix gets, in storage order."""
        candidate = {
            name: self._labels[candidates[index]]
            for unit, candidates, index in zip(
                self._offers.units, self._choices.candidates, choice, strict=True
            )
            for name in unit
        }
        taken = dict(self._taken(choice))
        for name in self._offers.of:
            yield Chosen(
                name=name,
                candidate=candidate[name],
                own=self._offers.own[name],
                plan=self._offers.of[name][taken[name]].layout.plan,
            )

    def _rules(self, choice: Choice) -> tuple[LockRule, ...]:
        return lock_rules(list(self._chosen(choice)), self._labels)
