"""The program solved: a bound, what it leaves out, and HiGHS among what remains.

The Lagrangian bound

    max over l >= 0 of  sum_u min_c (d_uc + l b_uc) - l limit

is tight but for the last upgrade, so an option whose reduced cost exceeds the distance between the
bound and a known choice is in no better choice and is left out. HiGHS chooses among what remains;
of thousands of units among the options next to the price of a byte, on which the rest depends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reallm_compiler.search.highs import GAP, choose_among
from reallm_compiler.search.program import Choice, Option, Program

CORE = 120
"""Options beside the best of each unit that HiGHS chooses among: those of least reduced cost."""

STEPS = 100
"""Halvings of the interval of the multiplier."""


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
    found = choose_among(program, limit, kept)
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
    found = choose_among(program, None, kept) if program.items else None
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
    return list(dict.fromkeys(cheapest(program, limit) for limit in limits))


def bytes_without_items(program: Program, choice: Choice) -> int:
    """Bytes of a choice for free items."""
    return int(program.table.nbytes[program.table.rows(choice)].sum())


def cheapest(program: Program, limit: int) -> Choice:
    """What units take by themselves at the price of a byte at which they fit, for free items."""
    return tuple(_at(program, _price(program, limit))[0])


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
