"""Forged packed matrices: each is refused as a FormatError, or its products are of the right shape.

    python -m tests.faults.fuzz_packed --count 10000

A mutant is a coded matrix whose form (plan, shape, type) or whose section tensors were changed:
cut, lengthened, given other strides or types, filled with extreme numbers. Sections stand between
guards, so that a product that reads beyond one reads what makes its result infinite or not a
number, and one that writes is seen; torch checks every index of the plain path by itself.
"""

from __future__ import annotations

import json
import random
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.errors import FormatError
from reallm_compiler.kernels.choose import only_plain
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.runtime import ops
from tests.faults.fuzzing import Outcome, edit, run
from tests.kernels.packing import packed_matrix
from tests.plans import some_plan

SHAPES = ((16, 32), (13, 6), (64, 48))
BASES = 24
"""Matrices that mutants are made of."""
GUARD = 64
"""Bytes of 0xFF before and after a section: -1 as an integer, not a number as a float."""


@lru_cache(maxsize=BASES)
def base(number: int) -> PackedMatrix:
    """A coded matrix of any kinds."""
    draw = random.Random(number)
    while True:
        made = packed_matrix(some_plan(draw), draw.choice(SHAPES), number)
        if made is not None:
            return made


def mutant(seed: int) -> tuple[list[Tensor], list[Tensor], str, bool]:
    """(section tensors, the guarded memory of each, form, whether anything was changed)."""
    draw = random.Random(seed)
    packed = base(draw.randrange(BASES))
    form = packed.form.text
    guarded = [_guarded(section) for section in packed.sections.values()]
    sections = [section for _, section in guarded]
    memory = [whole for whole, _ in guarded]
    way = draw.randrange(8)
    if way < 3:
        tree = {"form": json.loads(form)}
        edit(draw, tree if draw.random() < 0.1 else tree["form"])
        try:
            form = json.dumps(tree.get("form"))
        except TypeError:  # bytes
            form = repr(tree)
    elif way < 7:
        for _ in range(draw.choice((1, 1, 2))):
            _spoil(draw, sections)
    return sections, memory, form, way < 7


def _guarded(section: Tensor) -> tuple[Tensor, Tensor]:
    whole = torch.full((section.nbytes + 2 * GUARD,), 0xFF, dtype=torch.uint8)
    inner = whole[GUARD : GUARD + section.nbytes]
    inner.copy_(section.reshape(-1).view(torch.uint8))
    return whole, inner.view(section.dtype).view(section.shape)


def _spoil(draw: random.Random, sections: list[Tensor]) -> None:
    """Change one section of a list."""
    floats = [index for index, one in enumerate(sections) if one.is_floating_point()]
    index = draw.choice(floats or [-1]) if draw.random() < 0.5 else -1
    if index < 0 and sections:
        index = draw.randrange(len(sections))
    if index < 0 or not sections[index].numel():
        return
    section = torch.empty(sections[index].shape, dtype=sections[index].dtype)
    section.copy_(sections[index])
    way = draw.randrange(14)
    if way == 0:
        sections[index] = section.reshape(-1)[: draw.randrange(section.numel())]
    elif way == 1:
        sections[index] = torch.cat([section, section])
    elif way == 2:
        sections[index] = section.new_zeros(1).expand(section.shape)
    elif way == 3:
        sections[index] = section.reshape(*section.shape, 1).repeat_interleave(2, -1)[..., 0]
    elif way == 4:
        other = draw.choice((torch.int64, torch.int8, torch.float16, torch.bool, torch.float64))
        sections[index] = section.to(other)
    elif way == 5:
        del sections[index]
    elif way == 6:
        other_index = draw.randrange(len(sections))
        sections[index], sections[other_index] = sections[other_index], section
    else:
        data = section.reshape(-1).view(torch.uint8)
        fill = draw.choice((0, 0xFF, 0x7F, 0x80, None))
        for at in range(draw.randrange(len(data)), len(data), draw.choice((1, 1, 7, 1 << 20))):
            data[at] = draw.randrange(256) if fill is None else fill


def fuzz(count: int, first: int, folder: Path, *, plain: bool = True) -> Outcome:
    """Run the products of `count` mutants.

    Args:
        count: how many.
        first: seed of the first.
        folder: not used.
        plain: by the plain path alone, without kernels.
    """
    outcome = Outcome()
    for seed in range(first, first + count):
        start = time.perf_counter()
        try:
            if plain:
                with only_plain():
                    found = outcome_of(seed)
            else:
                found = outcome_of(seed)
        except Exception as error:  # what should never happen
            outcome.findings.append(f"mutant {seed}: {type(error).__name__}: {error}")
            continue
        outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - start)
        outcome.counts[found] += 1
        outcome.intact += found == "intact"
    return outcome


def outcome_of(seed: int) -> str:
    """The rule that refuses a mutant, or `intact`.

    Raises:
        AssertionError: a product has another shape, or memory around a section was written to.
    """
    sections, memory, form, changed = mutant(seed)
    try:
        p, q = _run(sections, form)
    except FormatError as error:
        if not changed:
            raise
        return error.rule
    assert p > 0
    assert q > 0
    for whole in memory:
        assert bool((whole[:GUARD] == 0xFF).all() and (whole[-GUARD:] == 0xFF).all())
    return "intact"


def _run(sections: list[Tensor], form: str) -> tuple[int, int]:
    plain: Any = torch.ops.reallm.dequantize(sections, form, torch.float32)
    p, q = plain.shape
    x = torch.randn(2, q, generator=torch.Generator().manual_seed(0))
    assert torch.ops.reallm.linear(x, sections, form, None).shape == (2, p)
    rows = torch.tensor([0, p - 1])
    assert torch.ops.reallm.embedding(rows, sections, form, torch.float32).shape == (2, q)
    ops._kept.clear()  # tensors that die are forgotten by themselves; mutants are many
    return p, q


if __name__ == "__main__":
    raise SystemExit(run(fuzz, str(__doc__), count=1000))
