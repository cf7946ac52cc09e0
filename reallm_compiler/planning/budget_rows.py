"""Rows of a budget: matrices of one shape and plan, the same module in every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.planning.model import Plan
from reallm_compiler.storage.matrix import MatrixLayout
from reallm_compiler.units import bits_per_weight


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """Matrices that are alike.

    Attributes:
        name: the matrices' name with `*` for the layer's number, or with the numbers themselves
            where another row has the same pattern.
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

    @cached_property
    def _alike(self) -> Sequence[tuple[MatrixBudget, int]]:
        """One member of each size and how many there are: members of one size share their terms."""
        counts: dict[tuple[int, int, tuple[int, int]], list[MatrixBudget]] = {}
        for matrix in self.matrices:
            key = (id(matrix.terms), id(matrix.paper_terms), matrix.shape)
            counts.setdefault(key, []).append(matrix)
        return [(members[0], len(members)) for members in counts.values()]

    @property
    def numel(self) -> int:
        """Weights of all of them."""
        return sum(matrix.numel * count for matrix, count in self._alike)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(matrix.nbytes * count for matrix, count in self._alike)

    @property
    def exact_bits(self) -> Fraction:
        """Exact bits per weight over all of them."""
        return bits_per_weight(self.nbytes, self.numel)

    @property
    def paper_bits(self) -> Fraction:
        """Paper bits per weight over all of them."""
        return self._mean(lambda matrix: matrix.paper_bits)

    def paper_term_bits(self, term: str) -> Fraction:
        """The part of `paper_bits` that one budget term is."""
        return self._mean(lambda matrix: matrix.paper_terms.get(term, Fraction(0)))

    def term_bits(self, term: str) -> Fraction:
        """Bits per weight that one budget term takes."""
        return bits_per_weight(self.term_bytes(term), self.numel)

    def term_bytes(self, term: str) -> int:
        """Bytes that one budget term takes."""
        return sum(matrix.terms.get(term, 0) * count for matrix, count in self._alike)

    def _mean(self, bits: Callable[[MatrixBudget], Fraction]) -> Fraction:
        """Mean over all weights."""
        parts = (bits(matrix) * matrix.numel * count for matrix, count in self._alike)
        return sum(parts, Fraction(0)) / self.numel if self.numel else Fraction(0)


def budget_rows(plan: Plan, matrices: Sequence[MatrixBudget]) -> list[BudgetRow]:
    """The rows of `matrices`, in storage order."""
    numbers: dict[MatrixLayout, int] = {}  # equal ones, which may be several objects
    known: dict[int, int] = {}  # by identity, as a hash costs much
    groups: dict[tuple[str, int], list[MatrixBudget]] = {}
    for matrix in matrices:
        layout = plan.by_name[matrix.name].layout
        number = known.get(id(layout))
        if number is None:
            number = known[id(layout)] = numbers.setdefault(layout, len(numbers))
        groups.setdefault((pattern_of(matrix.name), number), []).append(matrix)
    patterns = [pattern for pattern, _ in groups]
    often = Counter(patterns)
    return [
        BudgetRow(
            name=pattern if often[pattern] == 1 else _numbered(members),
            shape=members[0].shape,
            matrices=tuple(members),
        )
        for pattern, members in zip(patterns, groups.values(), strict=True)
    ]


def pattern_of(name: str) -> str:
    """The name with `*` for each part that is a number."""
    return ".".join(map(_star_for_number, name.split(".")))


@lru_cache(1 << 14)
def _star_for_number(part: str) -> str:
    return "*" if part.isdigit() else part


def _numbered(members: Sequence[MatrixBudget]) -> str:
    """The pattern with the numbers that occur, such as `model.layers.0-3,7.mlp.up_proj`."""
    columns = zip(*(member.name.split(".") for member in members), strict=True)
    return ".".join(
        _ranges(map(int, set(parts))) if parts[0].isdigit() else parts[0] for parts in columns
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
