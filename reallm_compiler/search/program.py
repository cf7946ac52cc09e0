"""The choice as an integer program: one option for each unit, least damage, at most so many bytes.

    minimise    sum_u sum_c d_uc x_uc
    subject to  sum_c x_uc = 1 for each unit u
                sum_u sum_c b_uc x_uc + sum_i s_i y_i <= limit
                x_uc <= y_i for each item i that the option uses
                x, y in {0, 1}

An item is what several options store once: a table of a group, the text of a plan. Without items
this is the knapsack problem with multiple choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Choice = tuple[int, ...]
"""The option of each unit, by index."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of the ways to store a unit.

    Attributes:
        nbytes: what it takes, without items.
        damage: what it costs, 0 or more.
        items: indices of the items that it uses.
    """

    nbytes: int
    damage: float
    items: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """What is chosen from.

    Attributes:
        units: the options of each unit; the order of units breaks ties.
        items: bytes of each item.
    """

    units: Sequence[Sequence[Option]]
    items: Sequence[int] = ()

    def nbytes(self, choice: Sequence[int]) -> int:
        """Bytes of a choice, the items that it uses counted once."""
        options = [unit[index] for unit, index in zip(self.units, choice, strict=True)]
        used = {item for option in options for item in option.items}
        return sum(option.nbytes for option in options) + sum(self.items[item] for item in used)

    def damage(self, choice: Sequence[int]) -> float:
        """Damage of a choice."""
        pairs = zip(self.units, choice, strict=True)
        return float(sum(unit[index].damage for unit, index in pairs))

    def option(self, row: int) -> Option:
        """The option in a row of the table."""
        unit = int(self.table.unit[row])
        return self.units[unit][row - int(self.table.starts[unit])]

    @cached_property
    def table(self) -> Table:
        """All options in one row after another."""
        return Table.of(self)


@dataclass(frozen=True, eq=False)
class Table:
    """The options of all units in flat arrays.

    Attributes:
        starts [units]: index of each unit's first option.
        unit [options]: the unit of each.
        nbytes [options], damage [options]: as of `Option`.
        own [options]: bytes with all items of the option.
    """

    starts: NDArray[np.int64]
    unit: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    damage: NDArray[np.float64]
    own: NDArray[np.int64]

    @staticmethod
    def of(program: Program) -> Table:
        """The table of a program."""
        counts = np.array([len(unit) for unit in program.units], dtype=np.int64)
        options = [option for unit in program.units for option in unit]
        nbytes = np.array([option.nbytes for option in options], dtype=np.int64)
        items = [sum(program.items[item] for item in option.items) for option in options]
        return Table(
            starts=np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64),
            unit=np.repeat(np.arange(len(counts)), counts),
            nbytes=nbytes,
            damage=np.array([option.damage for option in options], dtype=np.float64),
            own=nbytes + np.array(items, dtype=np.int64),
        )

    def least(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The option of least value of each unit, the first of equal ones, as rows of the table."""
        lowest = np.minimum.reduceat(values, self.starts)
        found = np.flatnonzero(values == lowest[self.unit])
        _, first = np.unique(self.unit[found], return_index=True)
        return found[first]

    def choice(self, rows: NDArray[np.int64]) -> list[int]:
        """Rows of the table as indices of options."""
        return [int(index) for index in rows - self.starts]

    def rows(self, choice: Sequence[int]) -> NDArray[np.int64]:
        """Indices of options as rows of the table."""
        return self.starts + np.asarray(choice, dtype=np.int64)
