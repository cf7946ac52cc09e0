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

Taken = Sequence[tuple[str, int]]
"""The offers that the matrices of a unit take with one option: names, and indices of offers."""


def joint_kl(damages: Sequence[Damage]) -> float:
    """The predicted KL that several matrices cause together, in nats per token."""
    directions = [one.direction for one in damages if one.direction is not None]
    sizes = [one.shift for one in damages if one.direction is not None]
    together = np.tensordot(sizes, np.array(directions, dtype=np.float64), 1) if sizes else 0.0
    return sum(one.alone for one in damages) + float(np.square(together).sum())


@dataclass(frozen=True, eq=False)
class Joint:
    """What is chosen from, and what of it works together.

    Options are in the rows of the program's table, and matrices those that have a direction.

    Attributes:
        program: with the damage that each option does alone.
        alone: float64 [options], the part of it that adds up.
        square: float64 [options], the square of the shift by each.
        directions: float64 [matrices, k], of the shift by each matrix, of norm 1.
        unit: int64 [matrices], the unit of each.
        option, matrix: int64 [n], which options shift which matrices,
        size: float64 [n], and by how much.
    """

    program: Program
    alone: NDArray[np.float64]
    square: NDArray[np.float64]
    directions: NDArray[np.float64]
    unit: NDArray[np.int64]
    option: NDArray[np.int64]
    matrix: NDArray[np.int64]
    size: NDArray[np.float64]

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
        number: dict[str, int] = {}
        directions, unit, entries, alone, square = [], [], [], [], []
        for index, one in enumerate(taken):
            together: NDArray[np.float64] | float = 0.0
            for name, offer in one:
                found = damage[name][offer]
                if found.direction is None:
                    continue
                if name not in number:
                    number[name] = len(number)
                    directions.append(found.direction)
                    unit.append(program.table.unit[index])
                entries.append((index, number[name], found.shift))
                together = together + found.shift * found.direction.astype(np.float64)
            alone.append(sum(damage[name][offer].alone for name, offer in one))
            square.append(float(np.square(together).sum()))
        columns = list(zip(*entries, strict=True)) if entries else ([], [], [])
        return Joint(
            program=program,
            alone=np.array(alone, dtype=np.float64),
            square=np.array(square, dtype=np.float64),
            directions=np.array(directions, dtype=np.float64),
            unit=np.array(unit, dtype=np.int64),
            option=np.array(columns[0], dtype=np.int64),
            matrix=np.array(columns[1], dtype=np.int64),
            size=np.array(columns[2], dtype=np.float64),
        )

    def damage(self, choice: Sequence[int]) -> float:
        """Damage of a choice."""
        together = self.sizes(choice) @ self.directions if len(self.directions) else np.zeros(0)
        return float(self.alone[self.program.table.rows(choice)].sum() + together @ together)

    def sizes(self, choice: Sequence[int]) -> NDArray[np.float64]:
        """float64 [matrices]: the sizes of the shifts of a choice."""
        chosen = np.zeros(len(self.alone), dtype=bool)
        chosen[self.program.table.rows(choice)] = True
        taken = chosen[self.option]
        sizes = np.zeros(len(self.unit))
        sizes[self.matrix[taken]] = self.size[taken]
        return sizes

    def around(self, sizes: NDArray[np.float64]) -> Program:
        """The program whose damages are those of one exchange while all other units stay.

        The smallest damage of each unit is taken off, as damages are 0 or more.

        Args:
            sizes: float64 [matrices], of the shifts as they are.
        """
        table = self.program.table
        shifts = sizes[:, None] * self.directions  # [matrices, k]
        own = np.zeros((len(self.program.units), self.directions.shape[1]))
        np.add.at(own, self.unit, shifts)
        products = self.directions @ shifts.sum(0) - (self.directions * own[self.unit]).sum(1)
        crossed = np.bincount(
            self.option, weights=self.size * products[self.matrix], minlength=len(self.alone)
        )
        costs = self.alone + self.square + 2 * crossed
        costs -= np.minimum.reduceat(costs, table.starts)[table.unit]
        changed = iter(costs.tolist())
        units = [
            [Option(option.nbytes, next(changed), option.items) for option in unit]
            for unit in self.program.units
        ]
        return Program(units, self.program.items)

    def settled(self, choice: Choice, again: Callable[[Program], Choice]) -> Choice:
        """The best of a choice and of those that are chosen around it and what followed it.

        Args:
            choice: the first.
            again: chooses from a program.
        """
        if not len(self.directions):
            return choice
        best, mean = choice, self.sizes(choice)
        for count in range(2, 2 + ROUNDS):
            other = again(self.around(mean))
            if self.damage(other) < self.damage(best):
                best = other
            # Around the mean of them all: around the last one, two choices may follow each other.
            mean = mean + (self.sizes(other) - mean) / count
        return best

    def choose(self, limit: int, exact: Callable[[Choice], int]) -> Choice:
        """The choice of least damage whose exact bytes are at most `limit`; see `choose.choose`.

        Raises:
            SmallestError: there is none.
        """
        first = choose(self.program, limit, exact)
        best = self.settled(first, lambda around: choose(around, limit, exact, first))
        while len(self.directions):  # single exchanges
            around = self.around(self.sizes(best))
            found = filled(around, best, limit, exact, most=1)
            if not self.damage(found) < self.damage(best):
                break
            best = found
        return best
