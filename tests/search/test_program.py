"""The choice: as good as every choice tried, within the limit, the same whatever the order."""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest

from reallm_compiler.search.choose import SmallestError, choose
from reallm_compiler.search.program import Option, Program
from reallm_compiler.search.quiet import quiet_stdout
from reallm_compiler.search.solver import fill, frontier, smallest, solve


def random_program(
    units: int, options: int, seed: int, *, items: int = 0, smooth: bool = False
) -> Program:
    """A program of random sizes; damage falls with bytes, by and large, or smoothly as 4^-bits."""
    draw = random.Random(seed)
    rows = []
    for _ in range(units):
        weights = draw.choice([64 * 64, 64 * 172, 256 * 64])
        scale = 10 ** draw.uniform(-4, -1)
        unit = []
        for number in range(options):
            bits = 1.5 + number / 2
            nbytes = int(weights * bits / 8) + draw.randrange(0, 640, 64)
            noise = 1.0 if smooth else draw.uniform(0.5, 2)
            used = (number,) if items else ()
            unit.append(Option(nbytes, scale * 4**-bits * noise, used))
        rows.append(unit)
    return Program(rows, [items] * options if items else [])


def best_of_all(program: Program, limit: int) -> float | None:
    """The least damage of all choices within the limit, each looked at."""
    choices = itertools.product(*(range(len(unit)) for unit in program.units))
    found = [program.damage(one) for one in choices if program.nbytes(one) <= limit]
    return min(found, default=None)


@pytest.mark.parametrize("items", [0, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_six_matrices_and_five_candidates_are_chosen_as_well_as_by_trying_all(seed, items):
    program = random_program(6, 5, seed, items=items)
    least = program.nbytes(smallest(program))
    most = sum(max(option.nbytes for option in unit) for unit in program.units) + 5 * items
    for part in (0, 0.2, 0.5, 0.8, 1):
        limit = int(least + part * (most - least))
        choice = solve(program, limit)
        assert choice is not None
        assert program.nbytes(choice) <= limit
        best = best_of_all(program, limit)
        assert best is not None
        assert program.damage(choice) <= 1.01 * best


@pytest.mark.parametrize("items", [0, 5000])
def test_the_smallest_is_as_small_as_any(items):
    program = random_program(5, 4, 9, items=items)
    choices = itertools.product(*(range(4) for _ in program.units))
    least = min(map(program.nbytes, choices))
    assert program.nbytes(smallest(program)) == least
    assert solve(program, least) is not None
    assert solve(program, least - 1) is None


def test_of_equal_matrices_the_first_gets_the_larger_plan():
    unit = [Option(100, 4.0), Option(200, 1.0), Option(300, 0.5)]
    assert solve(Program([unit] * 3), 400) == (1, 0, 0)
    assert solve(Program([unit] * 3), 500) == (1, 1, 0)


def test_the_order_of_matrices_makes_no_other_choice():
    program = random_program(12, 5, 3, items=700)
    limit = int(1.3 * program.nbytes(smallest(program)))
    choice = solve(program, limit)
    order = random.Random(0).sample(range(12), 12)
    mixed = Program([program.units[unit] for unit in order], program.items)
    assert solve(mixed, limit) == tuple(choice[unit] for unit in order)


def test_no_upgrade_is_left_that_would_fit():
    program = random_program(20, 6, 5, items=300)
    limit = int(1.4 * program.nbytes(smallest(program)))
    choice = solve(program, limit)
    for unit, options in enumerate(program.units):
        for index, option in enumerate(options):
            if option.damage < options[choice[unit]].damage:
                other = (*choice[:unit], index, *choice[unit + 1 :])
                assert program.nbytes(other) > limit


def test_filling_takes_upgrades_until_none_fits():
    unit = [Option(100, 4.0), Option(200, 1.0)]
    assert fill(Program([unit] * 3), 500, (0, 0, 0)) == (1, 1, 0)


def test_many_matrices_are_near_the_bound():
    program = random_program(300, 8, 1, smooth=True)
    limit = int(1.5 * program.nbytes(smallest(program)))
    choice = solve(program, limit)
    assert program.nbytes(choice) <= limit
    points = [(program.nbytes(one), program.damage(one)) for one in frontier(program, 9)]
    assert points == sorted(points)
    assert points[::-1] == sorted(points, key=lambda one: one[1])
    below = max(point for point in points if point[0] <= limit)
    above = min(point for point in points if point[0] > limit)
    # Between two points of the hull no choice lies below the line through them.
    part = (limit - below[0]) / (above[0] - below[0])
    line = below[1] + part * (above[1] - below[1])
    assert above[1] <= program.damage(choice) <= 1.001 * line


def test_the_choice_is_corrected_by_exact_bytes():
    program = random_program(30, 5, 7)
    limit = int(1.4 * program.nbytes(smallest(program)))
    asked = []

    def exact(choice):  # what a sum does not see: a head, and a byte for each larger option
        asked.append(choice)
        return program.nbytes(choice) + 5000 + sum(choice)

    choice = choose(program, limit, exact)
    assert exact(choice) <= limit
    for unit, options in enumerate(program.units):
        for index, option in enumerate(options):
            if option.damage < options[choice[unit]].damage:
                assert exact((*choice[:unit], index, *choice[unit + 1 :])) > limit
    with pytest.raises(SmallestError) as caught:
        choose(program, 5000, exact)
    assert caught.value.choice == smallest(program)


def test_nothing_to_choose_from():
    assert solve(Program([]), 0) == ()
    assert smallest(Program([])) == ()


def test_what_a_library_prints_from_c_does_not_reach_stdout(capfd):
    with quiet_stdout():
        ctypes.CDLL(None).puts(b"HighsMipSolverData")
    print("data")
    assert capfd.readouterr().out == "data\n"
