"""Damages that work together: sums of shifts, exchanges, choices, and sketches of changes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from reallm_compiler.search.choose import SmallestError, choose
from reallm_compiler.search.damage import Damage
from reallm_compiler.search.joint import Joint, joint_kl
from reallm_compiler.search.program import Choice, Option, Program
from reallm_compiler.search.sketch import BUCKETS, random_signs, sketch


def shifted(kl: float, shift: float, direction: tuple[float, ...] = (1.0,)) -> Damage:
    return Damage(error=0.0, kl=kl, shift=shift, direction=np.array(direction, dtype=np.float32))


def random_joint(
    units: int, options: int, seed: int, *, share: float = 0.7, group: int = 1
) -> tuple[Joint, list[list[Damage]]]:
    """A model of random sizes, in which a share of each damage is of shifts in five directions.

    Returns:
        it, and the damages of the matrices of each option, in the rows of its table.
    """
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    damage, taken, rows = {}, [], []
    for unit in range(units):
        names = [f"{unit}.{member}" for member in range(group)]
        for name in names:
            direction = numbers.normal(size=5).astype(np.float32)
            direction /= np.linalg.norm(direction)
            scale = 10 ** draw.uniform(-3, -1)
            damage[name] = [
                Damage(
                    error=kl, kl=scale * kl, shift=(share * scale * kl) ** 0.5, direction=direction
                )
                for kl in (4 ** -(1.5 + number / 2) for number in range(options))
            ]
        weights = draw.choice([4096, 11008, 16384])
        row = []
        for number in range(options):
            kl = sum(damage[name][number].kl for name in names)
            row.append(Option(int(weights * (1.5 + number / 2) / 8), kl))
            taken.append([(name, number) for name in names])
        rows.append(row)
    joint = Joint.of(Program(rows), taken, damage)
    return joint, [[damage[name][number] for name, number in one] for one in taken]


def test_shifts_add_up_before_they_are_squared() -> None:
    one = shifted(5.0, 2.0, (1.0, 0.0))
    other = shifted(4.0, -1.0, (0.6, 0.8))
    without = Damage(error=0.0, kl=3.0)
    assert one.alone == 1.0
    assert joint_kl([one]) == 5.0
    assert joint_kl([one, one]) == 1 + 1 + 16
    assert joint_kl([one, other, without]) == pytest.approx(1 + 3 + 3 + (1.4**2 + 0.8**2))
    assert joint_kl([without, without]) == 6.0
    assert joint_kl([]) == 0.0


@pytest.mark.parametrize("group", [1, 3])
def test_the_damage_of_a_choice_is_that_of_its_matrices_together(group: int) -> None:
    joint, damages = random_joint(4, 3, 1, group=group)
    for choice in itertools.product(range(3), repeat=4):
        together = [one for row in joint.program.table.rows(choice) for one in damages[row]]
        assert joint.damage(choice) == pytest.approx(joint_kl(together), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [1, 3])
def test_around_a_choice_exchanges_cost_what_they_cost(seed: int, group: int) -> None:
    joint, _ = random_joint(5, 4, seed, group=group)
    choice: Choice = tuple(random.Random(seed).randrange(4) for _ in range(5))
    around = joint.around(joint.sizes(choice))
    for unit, index in itertools.product(range(5), range(4)):
        other = (*choice[:unit], index, *choice[unit + 1 :])
        change = around.damage(other) - around.damage(choice)
        assert change == pytest.approx(joint.damage(other) - joint.damage(choice), abs=1e-12)
    assert all(min(option.damage for option in unit) == 0 for unit in around.units)


@pytest.mark.parametrize("seed", range(12))
def test_choices_are_nearly_as_good_as_by_trying_all(seed: int) -> None:
    joint, _ = random_joint(6, 5, seed, group=1 + seed % 2)
    program = joint.program
    sizes = [[option.nbytes for option in unit] for unit in program.units]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    for part in (0.2, 0.5, 0.8):
        limit = int(least + part * (most - least))
        found = joint.choose(limit, program.nbytes)
        assert program.nbytes(found) <= limit
        assert joint.damage(found) <= joint.damage(choose(program, limit, program.nbytes))
        every = itertools.product(*(range(len(unit)) for unit in program.units))
        best = min(joint.damage(one) for one in every if program.nbytes(one) <= limit)
        assert joint.damage(found) <= 1.1 * best
        for unit, index in itertools.product(range(6), range(5)):  # no exchange is left
            other = (*found[:unit], index, *found[unit + 1 :])
            if program.nbytes(other) <= limit:
                assert joint.damage(other) >= joint.damage(found) * (1 - 1e-9)


def joint_of(*units: list[tuple[int, Damage]]) -> Joint:
    """Each unit one matrix, with the bytes and the damage of its options."""
    damage = {str(number): [found for _, found in unit] for number, unit in enumerate(units)}
    taken = [[(name, index)] for name, several in damage.items() for index in range(len(several))]
    rows = [[Option(nbytes, found.kl) for nbytes, found in unit] for unit in units]
    return Joint.of(Program(rows), taken, damage)


def test_shifts_that_cancel_may_stay() -> None:
    """Two matrices that undo each other's change are left; the third gets the bytes."""
    joint = joint_of(
        [(1, shifted(9.0, 3.0)), (2, shifted(0.0, 0.0))],
        [(1, shifted(9.0, -3.0)), (2, shifted(0.0, 0.0))],
        [(1, Damage(error=0, kl=8.0)), (2, Damage(error=0, kl=0.0))],
    )
    nbytes = joint.program.nbytes
    assert choose(joint.program, 4, nbytes)[2] == 0
    assert joint.damage((0, 0, 1)) == 0
    assert joint.choose(4, nbytes) == (0, 0, 1)


def test_one_exchange_is_made_where_two_would_undo_it() -> None:
    joint = joint_of(
        [(10, shifted(1.0, 1.0)), (20, shifted(0.0, 0.0))],
        [(10, shifted(1.0, 1.0)), (20, shifted(0.0, 0.0))],
        [(1, shifted(1.0, -1.0))],
    )
    found = joint.choose(41, joint.program.nbytes)
    assert joint.damage(found) == 0


def test_a_limit_that_one_choice_meets_is_met() -> None:
    """By the planner's bytes another choice of the smallest size takes one byte more."""
    joint = joint_of(
        [(10, shifted(1.0, 0.0)), (10, shifted(1.1, -1.0))],
        [(10, shifted(4.0, 2.0))],
    )

    def exact(choice: Choice) -> int:
        return joint.program.nbytes(choice) + choice[0]

    assert joint.choose(20, exact) == (0, 0)
    assert joint.choose(21, exact) == (1, 0)
    with pytest.raises(SmallestError):
        joint.choose(19, exact)


def test_without_shifts_it_is_the_program() -> None:
    joint = joint_of(
        *(
            [(bits * size, Damage(error=0.0, kl=4.0**-bits)) for bits in range(1, 5)]
            for size in (100, 200, 300)
        )
    )
    nbytes = joint.program.nbytes
    for limit in (600, 1000, 1500, 3000):
        assert joint.choose(limit, nbytes) == choose(joint.program, limit, nbytes)


@pytest.mark.parametrize("columns", [3, 500, BUCKETS, 3000])
@pytest.mark.parametrize("frequent", [False, True])
def test_products_of_sketches_are_those_of_what_was_sketched(columns: int, frequent: bool) -> None:
    numbers = torch.Generator().manual_seed(1)
    first = torch.randn(200, columns, generator=numbers)
    if frequent:  # few columns have most of it, as tokens of a text have
        first /= torch.arange(1, columns + 1).sqrt()
    second = 0.6 * first + 0.8 * torch.randn(200, columns, generator=numbers) * first.abs()
    norms = float(first.norm() * second.norm())
    errors = []
    for seed in range(20):
        signs = random_signs((200, columns), seed)
        one, other = sketch(first, signs), sketch(second, signs)
        assert one.shape == (BUCKETS,)
        errors.append((float(one @ other) - float((first * second).sum())) / norms)
    deviation = 2 * min(BUCKETS, 200 * columns) ** -0.5
    assert abs(sum(errors) / 20) < deviation
    assert float(torch.tensor(errors).std()) < deviation


def test_signs_are_of_the_seed() -> None:
    signs = random_signs((3, 5, 7), 1)
    assert torch.equal(signs, random_signs((3, 5, 7), 1))
    assert not torch.equal(signs, random_signs((3, 5, 7), 2))
    assert set(signs.flatten().tolist()) == {-1, 1}
