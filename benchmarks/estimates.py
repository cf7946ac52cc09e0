"""What `reallm budget --time` says beside what runs take, in processor seconds.

    python -m benchmarks.estimates MODEL RECIPE [RECIPE ...] [--stats FILE]    compiles
    python -m benchmarks.estimates MODEL --calibrate TEXT [--samples 32] [--window 256]
    python -m benchmarks.estimates --layer RECIPE [RECIPE ...]    a made layer, 4096 wide

Each run is the command line in a process of its own, one worker, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

import reallm_compiler as reallm
from benchmarks.scale import COMMAND, ENVIRONMENT, write_checkpoint
from benchmarks.timing import Timer
from reallm_compiler.estimates.rates import measured_rates
from reallm_compiler.estimates.work import all_of, calibration_work, compile_work
from reallm_compiler.storage import work as operations

LAYER = 32_000_000
"""Weights of the made checkpoint: two matrices of a 4096-wide layer."""


def seconds_of(args: list[str]) -> float:
    """Processor seconds of the command line."""
    timer = Timer("cpu")
    quiet = subprocess.DEVNULL
    whole = [*COMMAND, *args]
    run = partial(subprocess.run, whole, env=ENVIRONMENT, check=True, stdout=quiet, stderr=quiet)
    timer.run("run", run)
    return timer.median("run")


def row(title: str, work: Mapping[str, int], measured: float) -> None:
    predicted = measured_rates().seconds(work)
    ratio = "no rate" if predicted is None else f"{predicted / measured:.2f}"
    shown = "" if predicted is None else f"{predicted:.1f}"
    print(f"| {title} | {shown} | {measured:.1f} | {ratio} |", flush=True)


def compiles(model: Path, recipes: list[str], stats: str | None, folder: Path) -> None:
    for recipe in recipes:
        plan = reallm.plan(recipe, model=model)
        work = dict(all_of(compile_work(plan)))
        work[operations.PROCESSES] = 1
        args = ["compile", recipe, "--model", str(model), "-o", str(folder / f"{recipe}.reallm")]
        args += ["--workers", "1", "--device", "cpu"]
        args += ["--stats", stats] if stats is not None else []
        row(f"compile {model.name}, {recipe}", work, seconds_of(args))


def calibrates(given: argparse.Namespace, folder: Path) -> None:
    config = json.loads((given.model / "config.json").read_text())
    config["max_position_embeddings"] = given.window
    plan = reallm.plan("nf4", model=given.model)
    args = ["calibrate", str(given.model), "--text", given.calibrate, "--device", "cpu"]
    args += ["--samples", str(given.samples), "--window", str(given.window), "--workers", "1"]
    work = calibration_work(plan, config, given.samples)
    title = f"calibrate {given.model.name}, {given.samples} x {given.window}"
    row(title, work, seconds_of([*args, "-o", str(folder / "a.stats")]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--stats")
    parser.add_argument("--layer", nargs="+", default=[], metavar="RECIPE")
    parser.add_argument("--calibrate", metavar="TEXT")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--window", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| run | predicted, s | measured, s | predicted / measured |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch)
        if given.layer:
            made = folder / "made-4096"
            write_checkpoint(made, weights=LAYER, hidden=4096, inner=11008)
            compiles(made, given.layer, None, folder)
        elif given.model is None:
            sys.exit("give a model, or --layer")
        else:
            compiles(given.model, given.recipes, given.stats, folder)
            if given.calibrate:
                calibrates(given, folder)


if __name__ == "__main__":
    main()
