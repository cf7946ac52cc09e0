"""Damages that work together: sums of shifts, exchanges, choices, and sketches of changes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from reallm_compiler.search.choose import choose
from reallm_compiler.search.damage import Damage, joint_kl
from reallm_compiler.search.joint import Joint
from reallm_compiler.search.program import Choice, Option, Program
from reallm_compiler.search.sketch import BUCKETS, sketch


def random_joint(units: int, options: int, seed: int, *, share: float = 0.7) -> Joint:
    """A model of random sizes, in which a share of each damage is of shifts in five directions."""
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    damage, taken, rows = {}, [], []
    for unit in range(units):
        direction = numbers.normal(size=5).astype(np.float32)
        direction /= np.linalg.norm(direction)
        scale, weights = 10 ** draw.uniform(-3, -1), draw.choice([4096, 11008, 16384])
        row, found = [], []
        for number in range(options):
            bits = 1.5 + number / 2
            kl = scale * 4**-bits
            found.append(
                Damage(error=4**-bits, kl=kl, shift=direction * np.float32((share * kl) ** 0.5))
            )
            row.append(Option(int(weights * bits / 8), kl))
            taken.append([(str(unit), number)])
        damage[str(unit)] = found
        rows.append(row)
    return Joint.of(Program(rows), taken, damage)


def test_shifts_add_up_before_they_are_squared() -> None:
    one = Damage(error=0.0, kl=5.0, shift=np.array([2.0, 0.0], dtype=np.float32))
    other = Damage(error=0.0, kl=4.0, shift=np.array([-1.0, 1.0], dtype=np.float32))
    without = Damage(error=0.0, kl=3.0)
    assert one.alone == 1.0
    assert joint_kl([one]) == 5.0
    assert joint_kl([one, one]) == 1 + 1 + 16
    assert joint_kl([one, other, without]) == 1 + 2 + 3 + (1 + 1)
    assert joint_kl([without, without]) == 6.0
    assert joint_kl([]) == 0.0


def test_the_damage_of_a_choice_is_that_of_its_matrices_together() -> None:
    damage = {
        "a": [Damage(error=0, kl=2.0, shift=np.ones(1, np.float32)), Damage(error=0, kl=9.0)],
        "b": [Damage(error=0, kl=4.0, shift=np.full(1, 2.0, np.float32))],
        "c": [Damage(error=0, kl=1.0, shift=np.full(1, -1.0, np.float32))],
    }
    program = Program([[Option(1, 6.0), Option(2, 13.0)], [Option(1, 1.0)]])
    taken = [[("a", 0), ("b", 0)], [("a", 1), ("b", 0)], [("c", 0)]]
    joint = Joint.of(program, taken, damage)
    assert joint.damage((0, 0)) == 1 + 0 + 0 + (1 + 2 - 1) ** 2
    assert joint.damage((1, 0)) == 9 + 0 + 0 + (2 - 1) ** 2


@pytest.mark.parametrize("seed", range(3))
def test_around_a_choice_exchanges_cost_what_they_cost(seed: int) -> None:
    joint = random_joint(5, 4, seed)
    choice: Choice = tuple(random.Random(seed).randrange(4) for _ in range(5))
    around = joint.around(joint.shifts_of(choice))
    for unit, index in itertools.product(range(5), range(4)):
        other = (*choice[:unit], index, *choice[unit + 1 :])
        change = around.damage(other) - around.damage(choice)
        assert change == pytest.approx(joint.damage(other) - joint.damage(choice), abs=1e-12)
    assert all(min(option.damage for option in unit) == 0 for unit in around.units)


@pytest.mark.parametrize("seed", range(12))
def test_choices_are_nearly_as_good_as_by_trying_all(seed: int) -> None:
    joint = random_joint(6, 5, seed)
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


def test_shifts_that_cancel_may_stay() -> None:
    """Two matrices that undo each other's change are left; the third gets the bytes."""
    away = {"a": 3.0, "b": -3.0}
    damage = {
        name: [
            Damage(error=0, kl=9.0, shift=np.full(1, shift, np.float32)),
            Damage(error=0, kl=0.0, shift=np.zeros(1, np.float32)),
        ]
        for name, shift in away.items()
    }
    damage["c"] = [Damage(error=0, kl=8.0), Damage(error=0, kl=0.0)]
    program = Program([[Option(1, one.kl), Option(2, 0.0)] for one, _ in damage.values()])
    joint = Joint.of(program, [[(name, index)] for name in damage for index in (0, 1)], damage)
    assert choose(program, 4, program.nbytes)[2] == 0
    assert joint.damage((0, 0, 1)) == 0
    assert joint.choose(4, program.nbytes) == (0, 0, 1)


def test_without_shifts_it_is_the_program() -> None:
    joint = random_joint(6, 5, 0, share=0.0)
    plain = Joint(joint.program, joint.alone, np.zeros((30, 0)))
    limit = int(1.4 * min(joint.program.nbytes([index] * 6) for index in range(5)))
    assert plain.choose(limit, plain.program.nbytes) == choose(
        joint.program, limit, joint.program.nbytes
    )


@pytest.mark.parametrize("columns", [3, 500, BUCKETS, 3000])
def test_products_of_sketches_are_those_of_what_was_sketched(columns: int) -> None:
    numbers = torch.Generator().manual_seed(1)
    first = torch.randn(40, columns, generator=numbers)
    first += torch.linspace(-2, 2, columns)  # what all rows have in common
    second = 0.6 * first + 0.8 * torch.randn(40, columns, generator=numbers)
    products = []
    for seed in range(20):
        one, other = (
            sketch(values, torch.Generator().manual_seed(seed)) for values in (first, second)
        )
        assert one.shape == (BUCKETS,)
        products.append(float(one @ other))
    norms = float(first.norm() * second.norm())
    spread = (torch.tensor(products) - float((first * second).sum())) / norms
    deviation = min(BUCKETS, columns) ** -0.5
    assert abs(float(spread.mean())) < deviation
    assert float(spread.std()) < 2 * deviation
