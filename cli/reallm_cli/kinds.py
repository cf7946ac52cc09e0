"""Matrices of one kind: the same place in every layer, the same shape, the same plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.planning.model import Plan
from reallm_compiler.units import bits_per_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A row of the budget.

    Attributes:
        name: the matrices' name with `*` for the layer's number, or with the numbers themselves
            where another kind has the same pattern.
        shape: (p, q) of each.
        matrices: the budgets of its members.
    """

    name: str
    shape: tuple[int, int]
    matrices: tuple[MatrixBudget, ...]

    @property
    def count(self) -> int:
        """Number of matrices."""
        return len(self.matrices)

    @property
    def weights(self) -> int:
        """Weights of all of them."""
        return sum(matrix.weights for matrix in self.matrices)

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(matrix.bytes for matrix in self.matrices)

    @property
    def exact_bits(self) -> Fraction:
        """Exact bits per weight over all of them."""
        return bits_per_weight(self.bytes, self.weights)

    @property
    def paper_bits(self) -> Fraction:
        """Paper bits per weight over all of them."""
        total = sum((matrix.paper_bits * matrix.weights for matrix in self.matrices), Fraction(0))
        return total / self.weights if self.weights else Fraction(0)

    def paper_term_bits(self, term: str) -> Fraction:
        """The part of `paper_bits` that one budget term is."""
        zero = Fraction(0)
        parts = (matrix.paper_terms.get(term, zero) * matrix.weights for matrix in self.matrices)
        return sum(parts, zero) / self.weights if self.weights else zero

    def term_bits(self, term: str) -> Fraction:
        """Bits per weight that one budget term takes."""
        return bits_per_weight(self.term_bytes(term), self.weights)

    def term_bytes(self, term: str) -> int:
        """Bytes that one budget term takes."""
        return sum(matrix.terms.get(term, 0) for matrix in self.matrices)


def kinds_of(plan: Plan, matrices: Sequence[MatrixBudget]) -> list[Kind]:
    """The kinds of `matrices`, in storage order."""
    groups: dict[tuple[object, ...], list[MatrixBudget]] = {}
    for matrix in matrices:
        planned = plan.by_name[matrix.name]
        key = (pattern_of(matrix.name), matrix.shape, planned.dtype, planned.plan)
        groups.setdefault(key, []).append(matrix)
    patterns = [str(key[0]) for key in groups]
    return [
        Kind(
            name=pattern if patterns.count(pattern) == 1 else _numbered(members),
            shape=members[0].shape,
            matrices=tuple(members),
        )
        for pattern, members in zip(patterns, groups.values(), strict=True)
    ]


def pattern_of(name: str) -> str:
    """The name with `*` for each part that is a number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _numbered(members: Sequence[MatrixBudget]) -> str:
    """The pattern with the numbers that occur, such as `model.layers.0-3,7.mlp.up_proj`."""
    columns = zip(*(member.name.split(".") for member in members), strict=True)
    return ".".join(
        _ranges(int(part) for part in parts) if parts[0].isdigit() else parts[0]
        for parts in columns
    )


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
