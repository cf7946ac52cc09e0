"""The choice as an integer program: one option for each unit, least damage, at most so many bytes.

    minimise    sum_u sum_c d_uc x_uc
    subject to  sum_c x_uc = 1 for each unit u
                sum_u sum_c b_uc x_uc + sum_i s_i y_i <= limit
                x_uc <= y_i for each item i that the option uses
                x, y in {0, 1}

An item is what several options store once: a table of a group, the text of a plan. Without items
this is the knapsack problem with multiple choices. Its Lagrangian bound

    max over l >= 0 of  sum_u min_c (d_uc + l b_uc) - l limit

is tight but for the last upgrade, so an option whose reduced cost exceeds the distance between the
bound and a known choice is in no better choice and is left out. HiGHS chooses among what remains;
of thousands of units among the options next to the price of a byte, on which the rest depends.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reallm_compiler.search.quiet import quiet_stdout

CORE = 120
"""Options beside the best of each unit that HiGHS chooses among: those of least reduced cost."""

GAP = 1e-5
"""A choice is taken when none can have less damage than this part below it."""

NODES = 1000
"""Nodes of the search tree at most: a bound in seconds would make the result depend on speed."""

SCALE = 1e4
"""The largest coefficient of the objective."""

STEPS = 100
"""Halvings of the interval of the multiplier."""

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


def solve(program: Program, limit: int) -> Choice | None:
    """The choice of least damage within `limit` bytes; None if there is none.

    Of equal units the one that comes first gets the larger option.
    """
    if not program.units:
        return ()
    known = _feasible(program, limit)
    if known is None:
        return None
    lowest, reduced = _relaxed(program, limit)
    distance = program.damage(known) - lowest
    if distance <= GAP * abs(lowest):
        return _in_order(program, known)
    table = program.table
    kept = reduced <= distance * (1 + 1e-9)
    if kept.sum() > len(program.units) + CORE:  # HiGHS takes long: of the best those that matter
        kept &= reduced <= np.partition(reduced[reduced > 0], CORE)[CORE]
    kept[table.rows(known)] = True
    found = _highs(program, limit, kept)
    if found is None or program.damage(found) > program.damage(known):
        found = known
    return _in_order(program, fill(program, limit, found))


def smallest(program: Program) -> Choice:
    """The choice of fewest bytes, and of those that of least damage in each unit by itself."""
    if not program.units:
        return ()
    table = program.table
    rank = table.damage / (1 + table.damage.max())  # below a byte
    choices = [table.choice(table.least(sizes + rank)) for sizes in (table.nbytes, table.own)]
    known = min(choices, key=lambda choice: program.nbytes(choice))
    above = table.nbytes - np.minimum.reduceat(table.nbytes, table.starts)[table.unit]
    free = program.nbytes(known) - int(table.nbytes[table.rows(choices[0])].sum())
    kept = above <= free
    kept[table.rows(known)] = True
    found = _highs(program, None, kept) if program.items else None
    if found is not None and program.nbytes(found) < program.nbytes(known):
        return found
    return tuple(known)


def frontier(program: Program, count: int) -> list[Choice]:
    """Choices from the smallest to that of least damage, each the best of its size for free items.

    Args:
        program: what is chosen from.
        count: of sizes, which lie evenly between the two; fewer choices where some are the same.
    """
    if not program.units:
        return [()]
    table = program.table
    low = int(table.nbytes[table.least(table.nbytes.astype(np.float64))].sum())
    high = int(table.nbytes[table.least(table.damage)].sum())
    limits = [low + (high - low) * number // max(count - 1, 1) for number in range(count)]
    return list(dict.fromkeys(tuple(_at(program, _price(program, limit))[0]) for limit in limits))


def fill(program: Program, limit: int, choice: Sequence[int]) -> Choice:
    """A choice within the limit with upgrades, the largest gain first, until none fits."""
    table = program.table
    chosen = list(choice)
    left = limit - program.nbytes(chosen)
    uses = _Uses(program, chosen)
    while True:
        rows = table.rows(chosen)
        gain = table.damage[rows][table.unit] - table.damage
        grows = table.nbytes - table.nbytes[rows][table.unit]
        best = _first_that_fits(program, uses, chosen, gain, grows, left)
        if best is None:
            return tuple(chosen)
        unit, index = best
        left -= uses.replace(unit, chosen[unit], index)
        chosen[unit] = index


def _first_that_fits(
    program: Program,
    uses: _Uses,
    chosen: Sequence[int],
    gain: NDArray[np.float64],
    grows: NDArray[np.int64],
    left: int,
) -> tuple[int, int] | None:
    table = program.table
    slack = sum(program.items)  # what giving an item up could bring at most
    rows = np.flatnonzero((gain > 0) & (grows <= left + slack))
    for row in rows[np.argsort(-gain[rows], kind="stable")]:
        unit = int(table.unit[row])
        index = int(row - table.starts[unit])
        if uses.growth(unit, chosen[unit], index) <= left:
            return unit, index
    return None


class _Uses:
    """How many units use each item."""

    def __init__(self, program: Program, choice: Sequence[int]) -> None:
        self._program = program
        self._count = [0] * len(program.items)
        for unit, index in zip(program.units, choice, strict=True):
            for item in unit[index].items:
                self._count[item] += 1

    def growth(self, unit: int, old: int, new: int) -> int:
        """Bytes that another option of a unit takes more."""
        before, after = self._program.units[unit][old], self._program.units[unit][new]
        gone = [i for i in before.items if self._count[i] == 1 and i not in after.items]
        come = [i for i in after.items if self._count[i] == 0]
        items = self._program.items
        change = sum(items[item] for item in come) - sum(items[item] for item in gone)
        return after.nbytes - before.nbytes + change

    def replace(self, unit: int, old: int, new: int) -> int:
        """Take the other option; gives back its growth."""
        growth = self.growth(unit, old, new)
        for item in self._program.units[unit][old].items:
            self._count[item] -= 1
        for item in self._program.units[unit][new].items:
            self._count[item] += 1
        return growth


def _at(program: Program, multiplier: float) -> tuple[list[int], int]:
    """What each unit takes by itself at a price of a byte, and the bytes without items."""
    table = program.table
    rows = table.least(table.damage + multiplier * table.nbytes)
    return table.choice(rows), int(table.nbytes[rows].sum())


def _price(program: Program, limit: int) -> float:
    """The least price of a byte, nearly, at which units by themselves take at most `limit`."""
    if _at(program, 0.0)[1] <= limit:
        return 0.0
    table = program.table
    low, high = 0.0, max(float(table.damage.max()), 1e-300)  # at `high` a byte weighs more
    for _ in range(STEPS):
        # Prices span many decades: halve their logarithm once the interval is away from zero.
        middle = (low * high) ** 0.5 if low > 0 else high * 2.0**-20
        if low > 0 and high / low < 1 + 1e-12:
            break
        if _at(program, middle)[1] <= limit:
            high = middle
            if low == 0 and high < 1e-290:
                break
        else:
            low = middle
    return high


def _feasible(program: Program, limit: int) -> Choice | None:
    """A good choice within the limit; None if there is none."""
    within = limit
    for _ in range(8):  # the items that are used are known only afterwards
        chosen, _ = _at(program, _price(program, within))
        over = program.nbytes(chosen) - limit
        if over <= 0:
            return fill(program, limit, chosen)
        within -= over
    least = smallest(program)
    return fill(program, limit, least) if program.nbytes(least) <= limit else None


def bound(program: Program, limit: int) -> float:
    """A damage that no choice within `limit` bytes is below."""
    return _relaxed(program, limit)[0]


def _relaxed(program: Program, limit: int) -> tuple[float, NDArray[np.float64]]:
    """The Lagrangian bound with free items, and each option's reduced cost."""
    table = program.table
    price = _price(program, limit)
    values = table.damage + price * table.nbytes
    lowest = np.minimum.reduceat(values, table.starts)
    return float(lowest.sum() - price * limit), values - lowest[table.unit]


def _in_order(program: Program, choice: Sequence[int]) -> Choice:
    """The same with options exchanged among units that have equal ones: larger ones first."""
    alike: dict[tuple[Option, ...], list[int]] = {}
    for number, unit in enumerate(program.units):
        alike.setdefault(tuple(unit), []).append(number)
    ordered = list(choice)
    for options, numbers in alike.items():
        taken = sorted(
            (choice[number] for number in numbers), key=lambda i: (-options[i].nbytes, i)
        )
        for number, index in zip(numbers, taken, strict=True):
            ordered[number] = index
    return tuple(ordered)


def _highs(program: Program, limit: int | None, kept: NDArray[np.bool_]) -> Choice | None:
    """What HiGHS finds among some options; None if it finds nothing.

    Args:
        program: the program.
        limit: bytes at most; None makes bytes least instead of damage.
        kept [options]: which can be chosen; of each unit some can.
    """
    table = program.table
    several = np.add.reduceat(kept.astype(np.int64), table.starts) > 1
    fixed = np.flatnonzero(kept & ~several[table.unit])
    rows = np.flatnonzero(kept & several[table.unit])
    paid = {item for row in fixed for item in program.option(int(row)).items}
    spent = int(table.nbytes[fixed].sum()) + sum(program.items[item] for item in paid)
    left = None if limit is None else limit - spent
    for _ in range(2):
        taken = np.concatenate([fixed, _taken(program, left, rows, paid)])
        if len(taken) < len(program.units):
            return None
        choice = tuple(table.choice(np.sort(taken)))
        over = 0 if limit is None else program.nbytes(choice) - limit
        if over <= 0:
            return choice
        left = None if left is None else left - over  # HiGHS keeps a constraint to a millionth
    return None


def _taken(
    program: Program, limit: int | None, rows: NDArray[np.int64], paid: Set[int]
) -> NDArray[np.int64]:
    """The rows of the table that HiGHS takes, one of each unit; none if it finds nothing.

    Args:
        program: the program.
        limit: bytes at most; None makes bytes least.
        rows: what can be chosen.
        paid: items that are used in any case, and cost nothing more.
    """
    if not len(rows):
        return rows
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    table = program.table
    units, unit = np.unique(table.unit[rows], return_inverse=True)
    needs = [
        (number, item)
        for number, row in enumerate(rows)
        for item in program.option(row).items
        if item not in paid
    ]
    used = sorted({item for _, item in needs})
    column = {item: len(rows) + number for number, item in enumerate(used)}
    count = len(rows) + len(used)
    one = coo_array((np.ones(len(rows)), (unit, np.arange(len(rows)))), shape=(len(units), count))
    constraints = [LinearConstraint(one, 1, 1)]
    if needs:
        uses = np.repeat(np.arange(len(needs)), 2)
        columns = [c for number, item in needs for c in (number, column[item])]
        signs = np.tile([1.0, -1.0], len(needs))
        least = coo_array((signs, (uses, columns)), shape=(len(needs), count))
        constraints.append(LinearConstraint(least, -np.inf, 0))
    items = np.array([program.items[item] for item in used], dtype=np.float64)
    nbytes = table.nbytes[rows]
    # Bytes above each unit's least: numbers that are small beside those of a file.
    base = np.full(len(units), np.iinfo(np.int64).max)
    np.minimum.at(base, unit, nbytes)
    weights = np.concatenate([nbytes - base[unit], items])
    if limit is None:
        objective = weights
    else:
        objective = np.concatenate([table.damage[rows], np.zeros(len(used))])
        scale = max(float(weights.max()), 1.0)
        most = (limit - int(base.sum())) / scale
        constraints.append(LinearConstraint(weights[None, :] / scale, -np.inf, most))
    with quiet_stdout():
        result = milp(
            objective * (SCALE / max(float(np.abs(objective).max()), 1e-300)),
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP, "node_limit": NODES, "presolve": False},
        )
    if result.x is None:
        return rows[:0]
    taken: NDArray[np.int64] = rows[result.x[: len(rows)] > 0.5]
    return taken
