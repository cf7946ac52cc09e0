"""Makes statistics that somebody forged, digests right, and gives them to every command.

    python tests/faults/fuzz_statistics.py [--count 2000] [--seed 0]

Each starts as statistics of a small random Llama. Then something in it is changed, mostly: the
document, the values of a section, the table. `verify` and `inspect` run on it, and `compile` with
feedback. Each must end in success or with an error that is foreseen,
without control characters; statistics that were not changed must pass them all.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from reallm_compiler.checkpoint import open_source
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.statistics import (
    StatisticsForm,
    measured_matrices,
    same_inputs,
    statistics_document,
    statistics_rows,
)
from reallm_compiler.storage.statistics import sections as specs_of
from reallm_compiler.storage.values import Triangle
from reallm_formats import StatisticsEntry, names
from tests.faults.crash_recovery import make_model
from tests.faults.forged_archives import change_document, change_table, change_values
from tests.faults.fuzzing import Outcome, run
from tests.faults.watched import run_command, time_limit, watched
from vectors import forge

RECIPE = """\
reallm: 1
statistics: required
defaults:
  scales: {kind: absmax, per: row}
  quantizer: {kind: uniform, bits: 4}
  rounding: {kind: feedback}
"""
MATRIX = "model.layers.0.mlp.up_proj"


def change_origin(
    draw: random.Random, document: dict[str, Any], sections: list[forge.Section]
) -> None:
    """The statistics become those of other weights."""
    rows = document.get("matrices")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            row["sha256"] = draw.randbytes(32)


class Forger:
    """Makes statistics of one small model.

    Args:
        folder: where the model and the recipe are put.
    """

    def __init__(self, folder: Path) -> None:
        self.model = make_model(folder / "model")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        inventory = open_source(self.model)
        weights = Weights(inventory)
        facts = measured_matrices(inventory)
        rows = statistics_rows(facts, same_inputs(facts), StatisticsForm(diagonal=64))
        digests = {
            fact.name: bytes.fromhex(weights.digest_of(weights.by_name[fact.tensor]))
            for fact in facts
        }
        document = statistics_document(rows, tokens=64, settings={"window": 8}, digests=digests)
        self.document: dict[str, Any] = forge.ordered(document.plain())
        self.rows = document.matrices

    def mutant(self, seed: int) -> tuple[bytes, bool]:
        """Statistics, and whether something in them was changed; the same for the same seed."""
        draw = random.Random(seed)
        document = forge.ordered(self.document)
        sections = [one for row in self.rows for one in _filled(draw, row)]
        changes = [
            draw.choice((change_document, change_values, change_table, change_origin))
            for _ in range(draw.choice((0, 1, 1, 1, 2)))
        ]
        for change in changes:
            if sections:
                change(draw, document, sections)
        return forge.archive(sections, document, kind="statistics"), bool(changes)


def _filled(draw: random.Random, row: StatisticsEntry) -> Iterator[forge.Section]:
    """The sections of a row with values that have a meaning."""
    for spec in specs_of(row):
        count = spec.shape[0] if spec.shape else 1
        if spec.dtype == "u64":
            data = struct.pack("<2Q", 64, draw.randrange(3))
        elif spec.dtype == "f64":
            data = struct.pack("<d", draw.random())
        else:
            whole = isinstance(spec.values, Triangle)
            # A diagonal that outweighs its rows: the matrix is positive definite.
            values = [draw.uniform(-0.01, 0.01) if whole else draw.random() for _ in range(count)]
            at = step = 0
            while whole and at < count:
                values[at], step = 1.0, step + 1
                at += step + 1
            data = struct.pack(f"<{count}f", *values)
        yield names.matrix_section(row.name, spec.role), spec.dtype, list(spec.shape), data


def commands(forger: Forger, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and words of each command line."""
    yield "verify", ["verify", str(path)]
    yield "verify --quick", ["verify", "--quick", str(path)]
    yield "inspect", ["inspect", str(path)]
    yield "inspect --json", ["inspect", "--json", str(path)]
    yield "inspect NAME", ["inspect", str(path), MATRIX]
    model, recipe = str(forger.model), str(forger.recipe)
    options = ["--model", model, "--stats", str(path), "--only", f"{MATRIX}*", "--workers", "1"]
    yield "compile", ["compile", recipe, *options]


def fuzz(count: int, seed: int, folder: Path) -> Outcome:
    """Try the statistics `seed` to `seed` + `count` - 1."""
    outcome = Outcome()
    forger, path = Forger(folder), folder / "mutant.stats"
    with time_limit():
        for number in range(seed, seed + count):
            data, changed = forger.mutant(number)
            path.write_bytes(data)
            _attempt(number, forger, path, changed, outcome)
    return outcome


def _attempt(number: int, forger: Forger, path: Path, changed: bool, outcome: Outcome) -> None:
    """Run every command on one file."""
    ended = {
        name: watched(number, name, partial(run_command, args), outcome)
        for name, args in commands(forger, path)
    }
    outcome.intact += ended["verify"] == 0
    refused = [name for name, code in ended.items() if code]
    if not changed and refused:
        outcome.findings.append(f"{number}: nothing was changed, and {refused[0]} refuses it")


def main() -> int:
    """Run and print; 1 if anything was found."""
    return run(fuzz, __doc__, count=2000)


if __name__ == "__main__":
    sys.exit(main())
