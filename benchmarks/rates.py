"""Rates of the operations that `reallm budget --time` counts, measured on this machine.

    python -m benchmarks.rates                          the rates, and how each timing fits them
    python -m benchmarks.rates --measure                time all that is listed here, then fit
    python -m benchmarks.rates --measure --only gptq-4bit --only model

Matrices of normal weights (statistics of made inputs where a recipe needs them) are coded, a block
of a Llama runs forward and back, tokens are added to second moments, bytes are copied with their
digest; each in processor seconds of one thread. The rates are those that make the relative errors
of all timings least, none below zero. Timings and rates stand in
`reallm_compiler/estimates/rates.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.one_matrix import made_statistics, plan_of
from benchmarks.scale import COMMAND, ENVIRONMENT, write_checkpoint
from benchmarks.timing import Timer, conditions
from reallm_compiler.codecs import encode_matrix
from reallm_compiler.estimates import rates as known
from reallm_compiler.estimates.rates import Point, Rates
from reallm_compiler.storage import work as operations
from reallm_compiler.storage.matrix import layout_of

FILE = Path(known.__file__).with_name(known.FILE)
SMALL, TALL, WIDE, LONG = (512, 1024), (2048, 1024), (1024, 2048), (1024, 4096)
LARGE = (4096, 4096)
PATCH = (512, 512)
RECIPES: dict[str, tuple[tuple[int, int], ...]] = {
    "nf4": (TALL, WIDE, LARGE),
    "rtn-4bit": (TALL, WIDE, LARGE),
    "rtn-2bit": (WIDE, LARGE),
    "reallm-2bit-data-free": (SMALL,),
    "reallm-4bit-data-free": (SMALL,),
    "reallm-2bit": (SMALL, WIDE, LONG),
    "reallm-4bit": (TALL, WIDE),
    "qtip": (SMALL,),
    "reallm-2bit-tunable": (SMALL, TALL, WIDE, LONG),
    "paper-2bit": (SMALL, TALL, WIDE, LONG),
    "paper-3bit": (SMALL, TALL),
    "gptq-4bit": (SMALL, TALL, WIDE, LARGE),
    "gptq-2bit-act-order": (TALL, WIDE),
    "awq-4bit": (SMALL, TALL, WIDE),
    "spqr": (SMALL, TALL, WIDE),
    "quip-sharp-2bit": (SMALL, TALL, WIDE),
    "quip-sharp-4bit": (SMALL,),
    "aqlm-2x8": (SMALL,),
    "loftq": (TALL, WIDE),
    "lq-lora": (TALL, WIDE),
    "monarch": (TALL, WIDE),
    "norm-sorted": (TALL, WIDE),
}
TRAINED = {"reallm": 1, "extends": "paper-hnerv", "defaults": {"autoencoder": {"epochs": 1}}}
"""The trained autoencoder with one epoch in place of its thousands."""

TRAINED_POINT = ("paper-hnerv of an epoch", TRAINED)

TOKENS = 512
BLOCKS = ((1024, 2816), (2048, 5632), (4096, 11008))
"""Width and inner width of the blocks of a Llama that are run."""

ROUNDS = 100_000


def coded(title: str, recipe: Any, shape: tuple[int, int]) -> Point:
    """A matrix coded by a recipe."""
    plan, generator = plan_of(recipe), torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator).mul_(0.02)
    measured = made_statistics(*shape, generator) if plan.needs_statistics else None

    def run() -> object:
        return encode_matrix(plan, weight, seed=1, source_dtype="bf16", statistics=measured)

    return timed(title_of(title, shape), work_of(recipe, shape), run)


def title_of(name: str, shape: tuple[int, int]) -> str:
    return f"{name} {shape[0]} x {shape[1]}"


def work_of(recipe: Any, shape: tuple[int, int]) -> Mapping[str, int]:
    return {**layout_of(plan_of(recipe), shape, "bf16").work, operations.MATRICES: 1}


def counted_anew(points: Mapping[str, Point]) -> dict[str, Point]:
    """The same timings, with their operations as the size laws count them now."""
    coded: list[tuple[str, Any, tuple[int, int]]] = [
        (name, name, shape) for name, shapes in RECIPES.items() for shape in shapes
    ]
    coded.append((*TRAINED_POINT, PATCH))
    found = dict(points)
    for name, recipe, shape in coded:
        title = title_of(name, shape)
        if title in found:
            found[title] = replace(found[title], work=work_of(recipe, shape))
    return found


def timed(title: str, work: Mapping[str, int], run: Callable[[], object], rounds: int = 1) -> Point:
    timer = Timer("cpu")
    for _ in range(rounds):
        timer.run(title, run)
    return Point(title=title, seconds=timer.median(title), work=work)


def block_points() -> Iterator[Point]:
    """A block of a Llama, forward, and forward and back."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    for width, inner in BLOCKS:
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=width // 128,
            num_key_value_heads=width // 128,
        )
        config._attn_implementation = "sdpa"
        block = LlamaDecoderLayer(config, 0).requires_grad_(False)
        numel = sum(value.numel() for value in block.parameters() if value.dim() == 2)
        states = torch.randn(1, TOKENS, width)
        position = LlamaRotaryEmbedding(config)(states, torch.arange(TOKENS)[None])

        run = partial(run_block, block, states, position)
        run(False)
        for title, back in (("forward", False), ("forward and back", True)):
            work = {operations.MODEL: (2 if back else 1) * numel * TOKENS}
            yield timed(f"block of {width}, {title}", work, partial(run, back))


def run_block(block: Any, states: torch.Tensor, position: Any, back: bool) -> None:
    given = states.clone().requires_grad_(back)
    with torch.set_grad_enabled(back):
        made = block(given, position_embeddings=position)
        made = made[0] if isinstance(made, tuple) else made
        if back:
            made.backward(states)


def moment_points() -> Iterator[Point]:
    """Tokens added to second moments."""
    for width in (1024, 4096):
        states = torch.randn(TOKENS, width)
        sums = torch.zeros(width, width)
        work = {operations.MOMENTS: TOKENS * width * width}
        yield timed(f"moments of {width}", work, partial(sums.addmm_, states.t(), states), 3)


def product_points() -> Iterator[Point]:
    """Products of square matrices in float32 and float64."""
    for name, dtype in (
        (operations.PRODUCTS, torch.float32),
        (operations.DOUBLE_PRODUCTS, torch.float64),
    ):
        for size in (1024, 2048):
            matrix = torch.randn(size, size, dtype=dtype)
            run = partial(torch.mm, matrix, matrix)
            yield timed(f"product of {size} in {dtype}", {name: size**3}, run, 3)


def byte_point() -> Point:
    """Bytes read, copied and digested."""
    data = os.urandom(1 << 26)

    def run() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            hashlib.sha256(file.read()).digest()

    return timed("bytes written, read and digested", {operations.BYTES: len(data)}, run, 3)


def start_point() -> Point:
    """The command line compiling next to nothing: imports, planning, an archive of one matrix."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_checkpoint(model, weights=4096, hidden=64, inner=64)
        args = [*COMMAND, "compile", "rtn-4bit", "--model", str(model), "--force", "--workers", "1"]
        args += ["-o", str(Path(folder) / "a.reallm"), "--device", "cpu"]
        run = partial(subprocess.run, args, env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
        return timed("start of a process", {operations.PROCESSES: 1}, run, 3)


def measured(only: list[str]) -> Iterator[Point]:
    def wanted(name: str) -> bool:
        return not only or name in only

    for recipe, shapes in RECIPES.items():
        for shape in shapes if wanted(recipe) else ():
            yield coded(recipe, recipe, shape)
    if wanted("paper-hnerv"):
        yield coded(*TRAINED_POINT, PATCH)
    if wanted("model"):
        yield from block_points()
        yield from moment_points()
    if wanted("products"):
        yield from product_points()
    if wanted("bytes"):
        yield byte_point()
        yield start_point()


def fitted(points: tuple[Point, ...]) -> dict[str, float]:
    """Seconds per operation, none below zero, of least sum (predicted / measured - 1)^2."""
    names = sorted({name for point in points for name in point.work})
    # Parts of each timing per unit of a cost, in units that make all columns alike.
    rows = [[point.work.get(name, 0) / point.seconds for name in names] for point in points]
    sizes = [math.sqrt(sum(row[k] ** 2 for row in rows)) for k in range(len(names))]
    rows = [[value / size for value, size in zip(row, sizes, strict=True)] for row in rows]
    costs = [0.0] * len(names)
    rest = [1.0] * len(rows)
    for _ in range(ROUNDS):
        moved = 0.0
        for k in range(len(names)):
            step = max(sum(row[k] * r for row, r in zip(rows, rest, strict=True)), -costs[k])
            costs[k] += step
            moved = max(moved, abs(step))
            rest = [r - step * row[k] for row, r in zip(rows, rest, strict=True)]
        if moved < 1e-9:
            break
    return {name: cost / size for name, cost, size in zip(names, costs, sizes, strict=True)}


def show(rates: Rates) -> None:
    print(f"{rates.machine}\n\n| operation | per second of one core |\n|---|---|")
    for name, cost in sorted(rates.costs.items()):
        print(
            f"| {name} | {1 / cost:.3g} |" if cost else f"| {name} | costs nothing beside others |"
        )
    print("\n| timed | seconds | predicted / measured |\n|---|---|---|")
    ratios = []
    for point in rates.points:
        found = rates.seconds(point.work)
        if found is None:
            print(f"| {point.title} | {point.seconds:.3g} | no rate |")
            continue
        ratios.append(found / point.seconds)
        print(f"| {point.title} | {point.seconds:.3g} | {ratios[-1]:.2f} |")
    inside = sum(2 / 3 <= ratio <= 1.5 for ratio in ratios)
    print(f"\nmedian {statistics.median(ratios):.2f}; {inside} of {len(ratios)} within 1.5 times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--fit", action="store_true", help="write rates of the known timings")
    parser.add_argument("--only", action="append", default=[], help="a recipe or another timing")
    given = parser.parse_args()
    given.threads, given.rounds, given.clock = 1, 1, "cpu"
    torch.set_num_threads(1)
    old = known.rates_of(json.loads(FILE.read_text())) if FILE.exists() else None
    points = counted_anew({one.title: one for one in old.points} if old is not None else {})
    for point in measured(given.only) if given.measure else ():
        print(f"{point.title}: {point.seconds:.3g} s", flush=True)
        points[point.title] = point
    found = tuple(points.values())
    rates = Rates(machine=conditions(given), costs=fitted(found), points=found)
    if given.measure or given.fit:
        FILE.write_text(json.dumps(rates.to_json(), indent=1) + "\n")
    show(rates)


if __name__ == "__main__":
    main()
