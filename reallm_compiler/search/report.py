"""What an allocation gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reallm_compiler.planning.budget import Budget
from reallm_compiler.recipe.allocation import Scope, Target
from reallm_compiler.units import bits_per_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A choice by its sizes and its damage.

    Attributes:
        label: a candidate's that all matrices get; empty for a mix.
        nbytes: what the target's scope counts.
        numel: weights, by which a rate is taken.
        kl: predicted KL(original || coded) of all matrices that are chosen for, nats per token.
    """

    label: str = ""
    nbytes: int
    numel: int
    kl: float

    @property
    def bits(self) -> Fraction:
        """Bits per weight."""
        return bits_per_weight(self.nbytes, self.numel)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {"bytes": self.nbytes, "bits": float(self.bits), "kl": self.kl}
        return {"candidate": self.label, **plain} if self.label else plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a candidate got: how many matrices, their weights and the bytes that they take."""

    matrices: int
    numel: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The choice for one target.

    Attributes:
        target: what was asked.
        limit: the same in bytes.
        path: the file that was written; None if none was.
        text: the recipe.
        point: bytes and damage.
        budget: of the recipe, by the planner.
        candidates: what each candidate got, by label, in the recipe's order.
        matrices: the candidate and the predicted KL of each matrix that was chosen for.
    """

    target: Target
    limit: int
    path: str | None
    text: str
    point: Point
    budget: Budget
    candidates: Mapping[str, Share]
    matrices: Mapping[str, tuple[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys of `reallm allocate --json`."""
        totals = self.budget.totals
        rows = {row.name: row for row in self.budget.matrices}
        return {
            "target": self.target.text,
            "unit": self.target.unit,
            "scope": self.target.scope,
            "limit_bytes": self.limit,
            "bytes": self.point.nbytes,
            "file_bytes": totals.file_bytes,
            "coded_bytes": totals.coded_bytes,
            "exact_bits": float(totals.exact_bits),
            "kl": self.point.kl,
            "recipe": self.path,
            "candidates": {
                label: {"matrices": one.matrices, "numel": one.numel, "bytes": one.nbytes}
                for label, one in self.candidates.items()
            },
            "matrices": [
                {
                    "name": name,
                    "candidate": label,
                    "exact_bits": float(rows[name].exact_bits),
                    "bytes": rows[name].nbytes,
                    "kl": kl,
                }
                for name, (label, kl) in self.matrices.items()
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocateReport:
    """What was chosen.

    Attributes:
        locks: the choice for each target, in the order of the targets.
        scope: what bytes count.
        frontier: the best mixes from the smallest to the largest.
        uniform: the candidates that all matrices can get alike.
        measured: number of matrices that were chosen for, and of their candidates together.
        locked, left: matrices that keep the recipe's own plan: as it says, or as nothing fits.
        seconds: how long it took, and how long the choice alone.
    """

    locks: tuple[Lock, ...]
    scope: Scope
    frontier: tuple[Point, ...]
    uniform: tuple[Point, ...]
    measured: tuple[int, int]
    locked: int
    left: tuple[str, ...]
    seconds: float
    choice_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys of `reallm allocate --json`."""
        return {
            "scope": self.scope,
            "targets": [lock.to_json() for lock in self.locks],
            "frontier": [point.to_json() for point in self.frontier],
            "uniform": [point.to_json() for point in self.uniform],
            "locked": self.locked,
            "left": list(self.left),
        }
