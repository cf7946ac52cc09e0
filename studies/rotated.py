"""What a rotation of the model (`prepare: rotate`) does to the matrices: outliers, and errors.

    python studies/rotated.py --model FOLDER --stats FILE [--bits 2] [--matrix GLOB]

For each kind of matrix, of the original and of the model with norms folded and rotated: the
kurtosis of the weights (3 for normal ones), how far the largest input channel lies above the root
mean square of all, and tr(E H E^T) of the rotated matrix as a part of the original's, with codes
that are nearest or carry errors (GPTQ), and scales for each row or each group of 64. tr(E H E^T)
is the mean square of the same outputs in both. Means over layers are geometric.
"""

from __future__ import annotations

import argparse
import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.execute.statistics import read_statistics
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.build import build, open_model
from reallm_compiler.recipe import load_recipe
from reallm_compiler.stages import MatrixPlan

PREPARED = {"original": [], "rotated": [{"kind": "fold_norms"}, {"kind": "rotate"}]}
FEEDBACK = {"kind": "feedback", "sides": "input", "damping": "1/100"}
CODINGS: dict[str, dict[str, Any]] = {
    "nearest, rows": {"scales": {"per": "row"}},
    "nearest, groups of 64": {"scales": {"per": "block", "block": 64}},
    "GPTQ, rows": {"scales": {"per": "row"}, "rounding": FEEDBACK},
    "GPTQ, groups of 64": {"scales": {"per": "block", "block": 64}, "rounding": FEEDBACK},
}


def plan_of(coding: dict[str, Any], bits: int) -> MatrixPlan:
    """A plan with evenly spaced codes and integer zero points."""
    scales = {"kind": "affine", "dtype": "float16", "code_bits": bits, **coding["scales"]}
    quantizer = {"kind": "uniform", "bits": bits}
    return MatrixPlan.model_validate({**coding, "scales": scales, "quantizer": quantizer})


def cost(weight: Tensor, statistics: MatrixStatistics, plan: MatrixPlan) -> float:
    """tr(E H E^T) of a matrix as decoded."""
    shape = (weight.shape[0], weight.shape[1])
    found = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=statistics)
    decoded = decode_matrix(plan, shape, "f32", found.sections, dtype=torch.float32)
    error = (decoded - weight).double()
    return float((error @ statistics.inputs.double()).mul_(error).sum())


def measured(weight: Tensor, statistics: MatrixStatistics, bits: int) -> dict[str, float]:
    """All numbers of one matrix."""
    centred = weight.double() - weight.double().mean()
    power = statistics.inputs.diagonal()
    return {
        "kurtosis": float(centred.pow(4).mean() / centred.square().mean().square()),
        "largest input": float((power.max() / power.mean()).sqrt()),
        **{
            name: cost(weight, statistics, plan_of(coding, bits))
            for name, coding in CODINGS.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--matrix", default="*.layers.*", help="glob on the names of matrices")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for label, prepare in PREPARED.items():
        recipe = load_recipe({"reallm": 1, "prepare": prepare})
        inventory = open_model(recipe, given.model)
        weights = Weights(inventory)
        with StatisticsFile(given.stats) as file:
            for matrix in build(recipe, inventory).matrices:
                if not fnmatchcase(matrix.name, given.matrix):
                    continue
                statistics = read_statistics(file, matrix, weights, torch.device("cpu"))
                weight = weights.matrix(matrix.tensor, matrix.index, transposed=matrix.transposed)
                alike = found.setdefault(matrix.name.rpartition(".")[2], {})
                alike.setdefault(label, []).append(measured(weight.float(), statistics, given.bits))
    print(f"{given.bits} bits a code; each number is rotated / original, or original -> rotated.\n")
    print("| matrices | kurtosis | largest input | " + " | ".join(CODINGS) + " |")
    print("|---|---|---|" + "---|" * len(CODINGS))
    everything: list[dict[str, float]] = []
    for kind, both in found.items():
        ratios = [
            {name: turned[name] / plain[name] for name in CODINGS}
            for plain, turned in zip(both["original"], both["rotated"], strict=True)
        ]
        everything += ratios
        shown = [
            " -> ".join(f"{_mean([one[name] for one in both[label]]):.2f}" for label in PREPARED)
            for name in ("kurtosis", "largest input")
        ]
        print(f"| {kind} | {' | '.join(shown)} | {_row(ratios)} |")
    print(f"| all | | | {_row(everything)} |")


def _row(ratios: list[dict[str, float]]) -> str:
    return " | ".join(f"{_mean([one[name] for one in ratios]):.3f}" for name in CODINGS)


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


if __name__ == "__main__":
    main()
