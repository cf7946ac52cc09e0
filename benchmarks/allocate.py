"""The choice of `reallm allocate` on made-up damages, and planning by a rule for each matrix.

    python benchmarks/allocate.py                       224 and 10,000 matrices of 12 candidates
    python benchmarks/allocate.py --matrices 224 --candidates 432
    python benchmarks/allocate.py --rules 2000          planning, and no choice

Shapes are those of a dense model (224 matrices: Llama-2-7B's) or of a mixture of experts. Each
candidate has a rate from 1.25 to 4 bits, a few bytes of its own, and a plan's text that counts
once. The damage is a matrix's own, over seven decades, times 4^-bits and up to 20 % of chance. For
each target the bytes are printed that it leaves, into which no better plan of a matrix fits, and
by how much the damage is above the Lagrangian bound, which no choice is below.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.timing import Timer, cpu_seconds
from reallm_compiler.checkpoint import open_source
from reallm_compiler.planning.build import plan
from reallm_compiler.search.choose import upgrades
from reallm_compiler.search.program import Option, Program
from reallm_compiler.search.solver import bound, smallest, solve

PARTS = (0.1, 0.3, 0.5, 0.8)
"""Where between the smallest and the largest choice the targets lie."""

DENSE = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
EXPERTS = [(1024, 4096), (1024, 4096), (4096, 1024)]
TEXT = 600
"""Bytes of a plan in a manifest."""


def made_up(matrices: int, candidates: int, seed: int) -> Program:
    """A program of so many matrices."""
    draw = random.Random(seed)
    shapes = DENSE if matrices < 1000 else EXPERTS
    units = []
    for index in range(matrices):
        p, q = shapes[index % len(shapes)]
        scale = 10 ** draw.uniform(-8, -1)
        unit = []
        for number in range(candidates):
            bits = 1.25 + 2.75 * number / max(candidates - 1, 1)
            nbytes = int(p * q * bits / 8) + 64 * draw.randrange(2 * p // 64)
            damage = scale * 4**-bits * draw.uniform(0.8, 1.2)
            unit.append(Option(nbytes, damage, (number,)))
        units.append(unit)
    return Program(units, [TEXT] * candidates)


def choose(matrices: int, candidates: int) -> None:
    """Time the choice for some targets."""
    began = time.perf_counter()
    program = made_up(matrices, candidates, 1)
    least = program.nbytes(smallest(program))
    most = sum(max(option.nbytes for option in unit) for unit in program.units)
    print(f"{matrices:,} matrices, {candidates} candidates, from {least:,} to {most:,} bytes")
    print(f"{'target':>15} {'wall s':>8} {'cpu s':>8} {'free bytes':>11} {'from the bound':>15}")
    for part in PARTS:
        limit = int(least + part * (most - least))
        began, cpu = time.perf_counter(), cpu_seconds()
        choice = solve(program, limit)
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        assert choice is not None
        left = limit - program.nbytes(choice)
        assert left >= 0
        for unit, index in upgrades(program, choice, left):
            other = (*choice[:unit], index, *choice[unit + 1 :])
            assert program.nbytes(other) > limit, "an upgrade would fit"
        above = program.damage(choice) / bound(program, limit) - 1
        print(f"{limit:>15,} {wall:>8.2f} {cpu:>8.2f} {left:>11,} {above:>15.1e}")


def rules(count: int, rounds: int) -> None:
    """Time planning by one rule, by one for each matrix, and by one for each plan."""
    shapes = {
        f"model.layers.{index // 7}.{'abcdefg'[index % 7]}_proj.weight": list(DENSE[index % 7])
        for index in range(count)
    }
    inventory = open_source({"shapes": shapes}, weights=False)
    names = [fact.name for fact in inventory.matrices()]
    draw = random.Random(0)
    bits = {name: f"{draw.randrange(20, 32)}/8" for name in names}
    recipes = {
        "one rule": [_rule(["*.a_proj"], "3")],
        "a rule for each matrix": [_rule([name], bits[name]) for name in names],
        "a rule for each plan": [
            _rule([name for name in names if bits[name] == rate], rate)
            for rate in sorted(set(bits.values()))
        ],
    }
    timer = Timer()
    for _ in range(rounds):
        for label, found in recipes.items():
            recipe = {"reallm": 1, "extends": "reallm-2bit", "rules": found}
            timer.run(label, lambda: plan(recipe, model=inventory))  # noqa: B023 - called at once
    print(f"planning {count:,} matrices, processor seconds, median of {rounds}")
    for label in recipes:
        print(f"{label:<24} {timer.median(label):.3f}  {timer.ratio(label, 'one rule'):.2f} x")


def _rule(names: Sequence[str], bits: str) -> dict[str, Any]:
    return {"match": list(names), "set": {"quantizer": {"bits": bits}}}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", type=int, nargs="*", default=[224, 10_000])
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--rules", type=int, help="plan so many matrices, and choose nothing")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.rules is not None:
        rules(given.rules, given.rounds)
        return
    for matrices in given.matrices:
        choose(matrices, given.candidates)


if __name__ == "__main__":
    main()
