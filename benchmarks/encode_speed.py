"""Encoding speed of 4-bit recipes beside hqq and bitsandbytes, on the same matrix and threads.

    python benchmarks/encode_speed.py [--rows 4096 --columns 4096] [--threads 1] [--rounds 7]

A is a recipe of ours, B another library; they run in turn (A B A B ...) in one process after one
run each to warm up, and the ratio is the median of the ratios pair by pair. Times are of this
process's CPU with `--clock cpu` (the default: other work on the machine then counts little), of the
wall with `--clock wall`. Ours include the measured error, which the others do not compute; `coding
alone` leaves it out.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch

from benchmarks.one_matrix import made_statistics, plan_of
from benchmarks.timing import Timer, add_options, conditions, interleaved
from reallm_compiler.codecs import encode_matrix


def ours(recipe: str, weight: torch.Tensor, *, measured: bool) -> Callable[[], object]:
    plan, generator = plan_of(recipe), torch.Generator().manual_seed(1)
    p, q = weight.shape
    statistics = made_statistics(p, q, generator) if plan.needs_statistics else None

    def run() -> object:
        unmeasured = patch("reallm_compiler.codecs.encode.relative_error", lambda *_: 0.0)
        with nullcontext() if measured else unmeasured:
            return encode_matrix(plan, weight, seed=1, source_dtype="bf16", statistics=statistics)

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    add_options(parser, rounds=7)
    parser.add_argument("--ours-only", action="append", default=[], help="a recipe to time alone")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(given.rows, given.columns, generator=generator).mul_(0.02)
    count = weight.numel()
    print(f"{given.rows} x {given.columns} weights in float32, {conditions(given)}\n")
    print("| ours | ms | theirs | ms | ours / theirs |\n|---|---|---|---|---|")
    libraries = {
        "bitsandbytes nf4": lambda: bitsandbytes("nf4", weight, double=False),
        "bitsandbytes nf4 double": lambda: bitsandbytes("nf4", weight, double=True),
        "hqq 4 bit g64": lambda: hqq(4, weight),
    }
    for recipe in ("nf4", "rtn-4bit"):
        for library, make in libraries.items():
            try:
                other = make()
            except ImportError as error:
                print(f"| {recipe} | | {library} | not installed ({error.name}) | |")
                continue
            for measured in (True, False):
                calls = {"ours": ours(recipe, weight, measured=measured), "theirs": other}
                timer = interleaved(calls, given.rounds, given.clock)
                name = recipe if measured else f"{recipe}, coding alone"
                print(
                    f"| {name} | {timer.median('ours') * 1e3:.0f} "
                    f"| {library} | {timer.median('theirs') * 1e3:.0f} "
                    f"| {timer.ratio('ours', 'theirs'):.2f} |",
                    flush=True,
                )
    for recipe in given.ours_only:
        timer = Timer(given.clock)
        timer.run("ours", ours(recipe, weight, measured=True))
        taken = timer.median("ours")
        print(f"\n{recipe}: {taken:.1f} s, {count / taken:,.0f} weights per second")


if __name__ == "__main__":
    main()
