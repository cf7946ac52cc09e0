"""The program, or what is left of it, given to HiGHS by scipy."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from reallm_compiler.search.program import Choice, Program
from reallm_compiler.search.quiet import quiet_stdout

GAP = 1e-5
"""A choice is taken when none can have less damage than this part below it."""

NODES = 1000
"""Nodes of the search tree at most: a bound in seconds would make the result depend on speed."""

SCALE = 1e4
"""The largest coefficient of the objective."""


def choose_among(program: Program, limit: int | None, kept: NDArray[np.bool_]) -> Choice | None:
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
