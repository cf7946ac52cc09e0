"""Encoding speed of 4-bit recipes beside hqq and bitsandbytes, on the same matrix and threads.

    python benchmarks/encode_speed.py [--rows 4096 --columns 4096] [--threads 1] [--rounds 7]

A is a recipe of ours, B a rival; they run in turn (A B A B ...) in one process after one run each
to warm up, and the ratio is that of the medians. Times are of this process's CPU with `--clock cpu`
(the default: other work on the machine then counts little), of the wall with `--clock wall`. Ours
include the measured error, which a rival does not compute; `coding alone` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from reallm_compiler.codecs import encode_matrix
from reallm_compiler.codecs import matrix as codec
from reallm_compiler.recipe import load_recipe

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def ours(recipe: str, weight: torch.Tensor, *, measured: bool) -> Callable[[], object]:
    # A shared codebook becomes the matrix's own, so that it is learned in the time.
    plan = load_recipe(recipe).plan.model_copy(update={"share": None})

    def run() -> object:
        kept = codec._relative_error
        if not measured:
            codec._relative_error = lambda *_: 0.0
        try:
            return encode_matrix(plan, weight, seed=1, source_dtype="bf16")
        finally:
            codec._relative_error = kept

    return run


def bitsandbytes(kind: str, weight: torch.Tensor, *, double: bool) -> Callable[[], object]:
    import bitsandbytes.functional as library

    return lambda: library.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type=kind
    )


def hqq(bits: int, weight: torch.Tensor) -> Callable[[], object]:
    from hqq.core.quantize import Quantizer

    return lambda: Quantizer.quantize(
        weight.clone(),
        nbits=bits,
        group_size=64,
        axis=1,
        device="cpu",
        compute_dtype=torch.float32,
    )


def medians(
    first: Callable[[], object], second: Callable[[], object], rounds: int, clock: str
) -> tuple[float, float]:
    now = CLOCKS[clock]
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, taken in zip((first, second), times, strict=True):
            began = now()
            run()
            taken.append(now() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--ours-only", action="append", default=[], help="a recipe to time alone")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(given.rows, given.columns, generator=generator).mul_(0.02)
    count = weight.numel()
    print(
        f"{given.rows} x {given.columns} weights in float32, {given.threads} thread(s), "
        f"{given.rounds} rounds, {given.clock} clock; torch {torch.__version__}, "
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}\n"
    )
    print("| ours | ms | rival | ms | ours / rival |\n|---|---|---|---|---|")
    rivals = {
        "bitsandbytes nf4": lambda: bitsandbytes("nf4", weight, double=False),
        "bitsandbytes nf4 double": lambda: bitsandbytes("nf4", weight, double=True),
        "hqq 4 bit g64": lambda: hqq(4, weight),
    }
    for recipe in ("nf4", "rtn-4bit"):
        for rival, make in rivals.items():
            try:
                other = make()
            except ImportError as error:
                print(f"| {recipe} | | {rival} | not installed ({error.name}) | |")
                continue
            for measured in (True, False):
                a, b = medians(
                    ours(recipe, weight, measured=measured), other, given.rounds, given.clock
                )
                name = recipe if measured else f"{recipe}, coding alone"
                row = f"| {name} | {a * 1e3:.0f} | {rival} | {b * 1e3:.0f} | {a / b:.2f} |"
                print(row, flush=True)
    now = CLOCKS[given.clock]
    for recipe in given.ours_only:
        run = ours(recipe, weight, measured=True)
        began = now()
        run()
        taken = now() - began
        print(f"\n{recipe}: {taken:.1f} s, {count / taken:,.0f} weights per second")


if __name__ == "__main__":
    main()
