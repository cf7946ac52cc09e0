"""The damage of a choice where errors of several matrices work together.

What is like noise adds up by its KL. Smaller matrices change the logits in directions of their own,
which may be the same (query and key, value and output) or opposite: those changes add up, and the
KL follows the square of their sum,

    KL = sum of what is like noise + |sum of the shifts|^2.

The integer program adds damages up. Around a choice it is given what each option of one unit costs
while all others stay, which is exact for one exchange, and is solved again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reallm_compiler.search.choose import choose, filled
from reallm_compiler.search.damage import Damage
from reallm_compiler.search.program import Choice, Option, Program

ROUNDS = 8
"""Solutions around others."""

ROWS = 4096
"""Options that are looked at in one step."""

Taken = Sequence[tuple[str, int]]
"""The offers that the matrices of a unit take with one option: names, and indices of offers."""


@dataclass(frozen=True, eq=False)
class Joint:
    """What is chosen from, and what of it works together.

    Attributes:
        program: with the damage that each option does alone.
        alone: float64 [options], the part of it that adds up, in the rows of the program's table.
        shifts: float32 [options, k], the change of the logits by each; k is 0 where none is known.
    """

    program: Program
    alone: NDArray[np.float64]
    shifts: NDArray[np.float32]

    @staticmethod
    def of(
        program: Program, taken: Sequence[Taken], damage: Mapping[str, Sequence[Damage]]
    ) -> Joint:
        """Of what matrices do.

        Args:
            program: what is chosen from.
            taken: of each option, in the rows of its table.
            damage: of each offer of each matrix.
        """
        rows = [[damage[name][offer] for name, offer in one] for one in taken]
        width = max((len(one.shift) for row in rows for one in row), default=0)
        shifts = np.zeros((len(rows), width), dtype=np.float32)
        alone = np.array([sum(one.alone for one in row) for row in rows], dtype=np.float64)
        for index, row in enumerate(rows):
            for one in row:
                shifts[index, : len(one.shift)] += one.shift
        return Joint(program, alone, shifts)

    def damage(self, choice: Sequence[int]) -> float:
        """Damage of a choice."""
        together = self.shifts_of(choice).sum(0)
        return float(self.alone[self.program.table.rows(choice)].sum() + together @ together)

    def around(self, chosen: NDArray[np.float64]) -> Program:
        """The program whose damages are those of one exchange, from the least of each unit.

        Args:
            chosen: float64 [units, k], the shift by each unit as it is.
        """
        table = self.program.table
        others = chosen.sum(0) - chosen  # [units, k]: the shift by all other units
        costs = self.alone.copy()
        for first in range(0, len(costs), ROWS):
            own = self.shifts[first : first + ROWS].astype(np.float64)
            unit = table.unit[first : first + ROWS]
            costs[first : first + ROWS] += (own * (own + 2 * others[unit])).sum(1)
        costs -= np.minimum.reduceat(costs, table.starts)[table.unit]
        changed = iter(costs.tolist())
        units = [
            [Option(option.nbytes, next(changed), option.items) for option in unit]
            for unit in self.program.units
        ]
        return Program(units, self.program.items)

    def shifts_of(self, choice: Sequence[int]) -> NDArray[np.float64]:
        """float64 [units, k]: the shift by each unit of a choice."""
        return self.shifts[self.program.table.rows(choice)].astype(np.float64)

    def settled(self, choice: Choice, again: Callable[[Program], Choice]) -> Choice:
        """The best of a choice and of those that are chosen around it and what followed it.

        Args:
            choice: the first.
            again: chooses from a program.
        """
        best, mean = choice, self.shifts_of(choice)
        for number in range(2, 2 + ROUNDS if self.shifts.size else 2):
            other = again(self.around(mean))
            if self.damage(other) < self.damage(best):
                best = other
            # Around the mean of them all: around the last one, two choices may follow each other.
            mean = mean + (self.shifts_of(other) - mean) / number
        return best

    def choose(self, limit: int, exact: Callable[[Choice], int]) -> Choice:
        """The choice of least damage whose exact bytes are at most `limit`; see `choose.choose`.

        Raises:
            SmallestError: there is none.
        """
        first = choose(self.program, limit, exact)
        best = self.settled(first, lambda around: choose(around, limit, exact))
        while self.shifts.size:
            around = self.around(self.shifts_of(best))
            found = min(
                (filled(around, best, limit, exact), choose(around, limit, exact)),
                key=self.damage,
            )
            if self.damage(found) >= self.damage(best):
                break
            best = found
        return best
