"""What the fuzzers share: options, the report, and changes of plain data that mean harm."""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 63, 64, 65, 127, 128, 1 << 31, 1 << 32, 1 << 48, 1 << 63),
    *((1 << 64) - 1, -(1 << 63), 0.0, -0.0, 1.5, -2.5, float("nan"), float("inf"), 1e308),
    *("", "x", "a/b", "../x", "/x", "file:../x", "file:a", "tensor:x", "matrix:up/codes", "b3"),
    *("f32", "bf16", "u8", "\0", "é", "\u202e", "x" * 600, b"", b"\0" * 32, b"\xff" * 31),
    *([], [0], [1, 2], [[]] * 9, [1 << 40] * 3, {}, {"a": 1}, {"": {}}),
]
"""Values at and beyond the limits of what a field may hold."""


@dataclass
class Outcome:
    """What happened to all files.

    Attributes:
        intact: Files that were accepted.
        counts: How often each thing happened: a rule refused, a command ended with a code.
        findings: What should not have happened.
        slowest_s: Seconds of the slowest step.
        peak_bytes: Most memory that one file took, where it is measured.
    """

    intact: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    peak_bytes: int = 0


def run(fuzz: Callable[[int, int, Path], Outcome], description: str, *, count: int) -> int:
    """Run a fuzzer by its command line and print the report; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(given.count, given.seed, Path(folder))
    print(f"{given.count} files, seed {given.seed}, {time.perf_counter() - start:.0f} s")
    print(f"{outcome.intact} intact; the slowest step took {1000 * outcome.slowest_s:.0f} ms")
    if outcome.peak_bytes:
        print(f"peak memory of one file {outcome.peak_bytes / 1024:.0f} KiB")
    for name, many in sorted(outcome.counts.items()):
        print(f"  {name:24} {many}")
    for finding in outcome.findings[:100]:
        print(f"FOUND {finding}")
    return 1 if outcome.findings else 0


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list) and len(value[key]) < 1000:
            yield from walk(value[key])


def edit(draw: random.Random, tree: Any) -> None:
    """Change one value of a tree of plain data."""
    fields = list(walk(tree))
    holder, key = draw.choice(fields)
    way = draw.randrange(5)
    if draw.random() < 0.002:
        holder[key] = [0] * 90_000
    elif way == 0 and isinstance(holder, dict):
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 2 and isinstance(holder, dict):
        key = draw.choice(("later", "", "a", "name", "kind", "index"))
        holder[key] = copy.deepcopy(draw.choice(HOSTILE))
    elif way == 3:
        other, other_key = draw.choice(fields)
        holder[key] = copy.deepcopy(other[other_key])
    else:
        holder[key] = copy.deepcopy(draw.choice(HOSTILE))
