"""The program's choice by the planner's own bytes.

The program adds up bytes of matrices; the planner has those of the file. Their difference hardly
depends on the choice: the program is solved again with it until it stays, and at the end no
upgrade of one unit is left whose file would still fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from reallm_compiler.search.program import Choice, Program
from reallm_compiler.search.solver import smallest, solve

ROUNDS = 8
"""Solutions at most: the difference stays after two or three."""

MARGIN = 512
"""Bytes by which the program's sum may be wrong for one upgrade: counts and offsets of the file."""


class SmallestError(ValueError):
    """No choice fits; `choice` is the smallest there is."""

    def __init__(self, choice: Choice) -> None:
        super().__init__("no choice fits")
        self.choice = choice


def choose(
    program: Program, limit: int, exact: Callable[[Choice], int], known: Choice | None = None
) -> Choice:
    """The choice of least damage whose exact bytes are at most `limit`.

    Args:
        program: what is chosen from.
        limit: bytes at most.
        exact: bytes of a choice as the planner has them.
        known: a choice that fits, if one is known.

    Raises:
        SmallestError: there is none.
    """
    best = smallest(program) if known is None else known
    size = exact(best)
    if size > limit:
        raise SmallestError(best)
    beyond = size - program.nbytes(best)
    for _ in range(ROUNDS):
        choice = solve(program, limit - beyond)
        if choice is None:
            break
        size = exact(choice)
        if size <= limit and program.damage(choice) <= program.damage(best):
            best = choice
        found = size - program.nbytes(choice)
        if found == beyond:
            break
        beyond = found
    return filled(program, best, limit, exact)


def upgrades(program: Program, choice: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Options that lose less than those chosen and take at most `most` bytes more, without items.

    Returns:
        Units and options, the largest gain first.
    """
    table = program.table
    rows = table.rows(choice)
    gain = table.damage[rows][table.unit] - table.damage
    growth = table.nbytes - table.nbytes[rows][table.unit]
    found = np.flatnonzero((gain > 0) & (growth <= most))
    ordered = found[np.argsort(-gain[found], kind="stable")]
    return [(int(table.unit[row]), int(row - table.starts[table.unit[row]])) for row in ordered]


def filled(
    program: Program,
    choice: Choice,
    limit: int,
    exact: Callable[[Choice], int],
    most: int | None = None,
) -> Choice:
    """A choice with single upgrades, the largest gain first, until none fits any more.

    Args:
        program, limit, exact: as of `choose`.
        choice: a choice that fits.
        most: upgrades at most.
    """
    for _ in itertools.count() if most is None else range(most):
        size = exact(choice)
        for unit, index in upgrades(program, choice, limit - size + MARGIN):
            other = (*choice[:unit], index, *choice[unit + 1 :])
            # Items that only this option uses count too; the program knows them.
            if size + program.nbytes(other) - program.nbytes(choice) > limit + MARGIN:
                continue
            if exact(other) <= limit:
                choice = other
                break
        else:
            break
    return choice
