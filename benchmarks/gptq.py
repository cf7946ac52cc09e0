"""Feedback with a scalar grid beside the GPTQ of llm-compressor: error and time.

    python benchmarks/gptq.py [--shape 1024x1024 ...] [--threads 1] [--rounds 3]
    python benchmarks/gptq.py --model FOLDER --stats FILE [--matrix GLOB ...]

Without a model the matrices are made here: normal weights whose columns differ in size, and inputs
that depend on each other, with a few channels far larger than the rest. With one, they are the
checkpoint's own, and their statistics those that `reallm calibrate` measured.

Both get the same W and H, blocks of 128 columns with a scale each, the same damping, the columns in
their own order, and the same threads. The error is tr(E H E^T) of the undamped H, in float64; ours
is that of the matrix as decoded, theirs that of the matrix that they return. Times are of
`encode_matrix` (the measured error, packing and decoding included) and of their observer and
`quantize_weight` (which pack nothing). Ratios are ours / theirs, those of time pair by pair.

The grids differ. `asymmetric`: ours are 2^bits levels between two numbers that are both stored;
theirs have an integer zero point, so that zero is a level. `symmetric`: ours are 2^bits levels from
-s to s, without zero; theirs have zero and one level fewer above it. Scales are float32 on both
sides. Theirs reach to the largest weights of a block of the matrix as it was; ours to a share of
them that is searched, of a block as the errors of the columns before it have made it.

llm-compressor is not part of `.[comparisons]`: it wants certain versions of transformers. Install
it and this project into an environment of their own.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import add_options, conditions, interleaved
from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.stages import MatrixPlan
from studies.matrices import loaded

BLOCK = 128
DAMPING = "1/100"
SCALES = {"asymmetric": "minmax", "symmetric": "absmax"}


@dataclass(frozen=True)
class Subject:
    """A matrix [p, q] in float32, and E[x x^T] [q, q] of its inputs in float32."""

    name: str
    weight: Tensor
    inputs: Tensor


def made(rows: int, columns: int) -> Subject:
    """Weights and inputs as those of a language model are: neither is white."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight *= torch.exp(0.3 * torch.randn(columns, generator=generator))
    count = 4 * columns
    rank = columns // 4
    spectrum = torch.arange(1, rank + 1, dtype=torch.float32).rsqrt()
    mixing = torch.randn(rank, columns, generator=generator) * spectrum[:, None] / math.sqrt(rank)
    inputs = torch.randn(count, rank, generator=generator) @ mixing
    inputs += 0.05 * torch.randn(count, columns, generator=generator)
    inputs[:, torch.randperm(columns, generator=generator)[: max(columns // 256, 1)]] *= 10
    return Subject(f"made {rows} x {columns}", weight, inputs.T @ inputs / count)


def of_model(folder: Path, path: Path, globs: list[str]) -> Iterator[Subject]:
    """Matrices of a checkpoint whose rows are whole blocks, with their statistics."""
    with StatisticsFile(path) as statistics:
        for name in statistics.rows:
            if not any(fnmatchcase(name, glob) for glob in globs):
                continue
            found = loaded(folder, name)
            inputs = statistics.read(name).inputs
            if found and inputs.dim() == 2 and found[0].shape[1] % BLOCK == 0:
                yield Subject(name, found[0].values, inputs.float())


def ours(subject: Subject, bits: int, grid: str) -> Callable[[], Tensor]:
    """Our coding of a matrix, which returns it decoded."""
    plan = MatrixPlan.model_validate(
        {
            "scales": {"kind": SCALES[grid], "per": "block", "block": BLOCK},
            "quantizer": {"kind": "uniform", "bits": bits},
            "rounding": {"kind": "feedback", "sides": "input", "damping": DAMPING},
        }
    )
    statistics = MatrixStatistics(
        inputs=subject.inputs,
        mean_abs=subject.inputs.diagonal().sqrt(),
        count=1,
    )
    p, q = subject.weight.shape

    def run() -> Tensor:
        sections = encode_matrix(
            plan, subject.weight, seed=1, source_dtype="f32", statistics=statistics
        ).sections
        return decode_matrix(plan, (p, q), "f32", sections, dtype=torch.float32)

    return run


def theirs(subject: Subject, bits: int, grid: str) -> Callable[[], Tensor]:
    """llm-compressor's coding of a matrix, which returns it decoded."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.observers import Observer

    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        strategy="group",
        group_size=BLOCK,
        symmetric=grid == "symmetric",
    )

    @torch.no_grad()
    def run() -> Tensor:
        weight, inputs = subject.weight[None].clone(), subject.inputs[None].clone()  # used up
        observer = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=args)
        found = observer(subject.weight).get_qparams()
        decoded: Tensor = quantize_weight(
            weight,
            inputs,
            found["scale"][None],
            found["zero_point"][None],
            None,
            args,
            percdamp=float(Fraction(DAMPING)),
        )[0]
        return decoded[0]

    return run


def cost(subject: Subject, decoded: Tensor) -> float:
    """tr(E H E^T)."""
    error = (subject.weight - decoded).double()
    return float((error @ subject.inputs.double()).mul_(error).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="of a matrix that is made: ROWSxCOLUMNS")
    parser.add_argument("--model", type=Path, help="a checkpoint, whose matrices are taken instead")
    parser.add_argument("--stats", type=Path, help="what `reallm calibrate` measured on it")
    parser.add_argument("--matrix", action="append", help="glob on the names of its matrices")
    parser.add_argument("--bits", type=int, action="append", help="default: 4, 3 and 2")
    parser.add_argument("--grid", choices=SCALES, action="append", help="default: both")
    add_options(parser, rounds=3)
    given = parser.parse_args()
    if (given.model is None) != (given.stats is None):
        parser.error("--model and --stats belong together")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    if given.model is None:
        shapes = [tuple(map(int, shape.split("x"))) for shape in given.shape or ["1024x1024"]]
        subjects: Iterator[Subject] = (made(p, q) for p, q in shapes)
    else:
        subjects = of_model(given.model, given.stats, given.matrix or ["*"])
    print(f"Blocks of {BLOCK}, damping {DAMPING}, {conditions(given)}\n")
    print("| matrix | grid | bits | error, ours | theirs | ratio | ms, ours | theirs | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios: list[tuple[float, float]] = []
    for subject in subjects:
        for grid in given.grid or SCALES:
            for bits in given.bits or (4, 3, 2):
                calls = {
                    "ours": ours(subject, bits, grid),
                    "theirs": theirs(subject, bits, grid),
                }
                costs = {name: cost(subject, call()) for name, call in calls.items()}
                timer = interleaved(calls, given.rounds, given.clock)
                own, other = timer.median("ours") * 1e3, timer.median("theirs") * 1e3
                ratios.append((costs["ours"] / costs["theirs"], timer.ratio("ours", "theirs")))
                print(
                    f"| {subject.name} | {grid} | {bits} | {costs['ours']:.5g} "
                    f"| {costs['theirs']:.5g} | {ratios[-1][0]:.3f} | {own:.0f} | {other:.0f} "
                    f"| {ratios[-1][1]:.2f} |",
                    flush=True,
                )
    if not ratios:
        parser.error("no matrix of these names has statistics and rows of whole blocks")
    for name, values in zip(("error", "time"), zip(*ratios, strict=True), strict=True):
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"\n{name}: ours / theirs {mean:.3f} (geometric mean), {max(values):.3f} at most")


if __name__ == "__main__":
    main()
