"""The exponents of `channel_scale` beside those that AWQ finds in llm-compressor, on one grid.

    python benchmarks/awq.py --model FOLDER --text FILE [--sequences 32] [--window 256] [--bits 4]

Both are given the same sequences, the same exponents 0, 1/19, ..., 18/19, factors E|x|^alpha, and
blocks of 128 with an integer zero point. Theirs takes 1 as well. Where a matrix alone reads an
input, both judge by the same number, the mean square of its outputs; q, k and v, and gate and up,
are judged by the output of attention or of the MLP there, and here by the sum over their own
outputs. `by the output`: the exponent that our grid would take by their judgement. The last columns
are our sum for both exponents, as a part of what rounding to nearest gives.

llm-compressor is not part of `.[comparisons]`: it wants certain versions of transformers. Install
it and this project into an environment of their own. On a machine without an accelerator it asks
for pinned memory all the same, which is left out here.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.matrix_encoder import trial_of
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.stages import MatrixPlan

BLOCK, GRID = 128, 19
IGNORED = ["lm_head"]


def sequences_of(folder: Path, text: Path, count: int, window: int) -> list[list[int]]:
    """The first sequences of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer(text.read_text(encoding="utf-8")[: 8 * count * window])["input_ids"]
    return [ids[first : first + window] for first in range(0, count * window, window)]


def theirs(model: nn.Module, sequences: list[list[int]], bits: int) -> dict[str, float]:
    """The exponent of each mapping, by the name of the layer that takes the factors."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": {**weights, "group_size": BLOCK}}
    found: dict[str, float] = {}
    search = AWQModifier._compute_best_scale

    def watched(self: Any, mapping: Any, *args: Any) -> Tensor:
        scales: Tensor = search(self, mapping, *args)
        total, count = self._smooth_activation_stats[mapping.smooth_name]
        size = (total / count).clamp(min=1e-8).log()
        # scales are size^alpha but for a factor: the slope of their logarithms is alpha
        centred = size - size.mean()
        found[mapping.smooth_name] = float((centred @ scales.log()) / (centred @ centred))
        return scales

    AWQModifier._compute_best_scale = watched
    rows = {"input_ids": sequences, "attention_mask": [[1] * len(one) for one in sequences]}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=[
            AWQModifier(duo_scaling=False, n_grid=GRID + 1),
            QuantizationModifier(ignore=IGNORED, config_groups={"group_0": group}),
        ],
        num_calibration_samples=len(sequences),
        max_seq_length=len(sequences[0]),
        shuffle_calibration_samples=False,
    )
    return found


@torch.no_grad()
def inputs_of(model: nn.Module, sequences: list[list[int]]) -> dict[str, MatrixStatistics]:
    """E[x x^T] and E|x| of each linear layer, over all tokens of the original model."""
    sums: dict[str, list[Any]] = {}

    def hook(name: str) -> Any:
        def seen(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            known = sums.setdefault(name, [0, 0, 0])
            for index, value in enumerate((x.T @ x, x.abs().sum(0), len(x))):
                known[index] = known[index] + value

        return seen

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in IGNORED
    ]
    for one in sequences:
        model(input_ids=torch.tensor([one]))
    for handle in handles:
        handle.remove()
    return {
        name: MatrixStatistics(
            inputs=(gram / count).float(), mean_abs=(size / count).float(), count=count
        )
        for name, (gram, size, count) in sums.items()
    }


def calls_of(model: nn.Module, sequences: list[list[int]]) -> dict[str, list[Any]]:
    """What attention and the MLP of each layer are called with, for each sequence."""
    found: dict[str, list[Any]] = {}

    def hook(name: str) -> Any:
        return lambda _, args, kwargs: found.setdefault(name, []).append((args, dict(kwargs)))

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("self_attn", "mlp")
    ]
    with torch.no_grad():
        for one in sequences:
            model(input_ids=torch.tensor([one]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


class Search:
    """The sum of errors of matrices with one input, by the exponent."""

    def __init__(
        self, weights: list[Tensor], statistics: list[MatrixStatistics], bits: int
    ) -> None:
        plan = MatrixPlan.model_validate(
            {
                "scales": {"kind": "affine", "per": "block", "block": BLOCK, "code_bits": bits},
                "quantizer": {"kind": "uniform", "bits": bits},
            }
        )
        self._members = [
            (weight, trial_of(plan, (weight.shape[0], weight.shape[1]), "f32", 1, one))
            for weight, one in zip(weights, statistics, strict=True)
        ]

    def factors(self, alpha: Fraction | str) -> Tensor:
        """float64 [q]: of an exponent, or of the best one."""
        plain = {"kind": "channel_scale", "alpha": str(alpha), "grid": GRID}
        params = MatrixPlan.model_validate({"transform": [plain]}).transform[0]
        found: Tensor = codec_of(params).factors(params, self._members, 1, 1)
        return found

    def cost(self, factors: Tensor) -> float:
        """The sum of tr(E H E^T)."""
        total = 0.0
        for weight, trial in self._members:
            error = (trial.coded(weight * factors.float()) / factors - weight).double()
            total += float((error @ trial.statistics.inputs.double()).mul_(error).sum())
        return total

    @torch.no_grad()
    def by_output(self, parent: nn.Module, calls: list[Any], linears: list[Any]) -> int:
        """The step of the grid with the least error of what a module makes of its matrices."""

        def outputs() -> list[Tensor]:
            made = [parent(*args, **kwargs) for args, kwargs in calls]
            return [one[0] if isinstance(one, tuple) else one for one in made]

        wanted, costs = outputs(), []
        for step in range(GRID):
            factors = self.factors(Fraction(step, GRID)).float()
            for (weight, trial), linear in zip(self._members, linears, strict=True):
                linear.weight.copy_(trial.coded(weight * factors) / factors)
            pairs = zip(outputs(), wanted, strict=True)
            costs.append(sum(float((one - other).square().sum()) for one, other in pairs))
        for (weight, _), linear in zip(self._members, linears, strict=True):
            linear.weight.copy_(weight)
        return costs.index(min(costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--bits", type=int, default=4)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    sequences = sequences_of(given.model, given.text, given.sequences, given.window)
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, trust_remote_code=False
    )
    statistics = inputs_of(model, sequences)
    weights = {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name in statistics
    }
    original = copy.deepcopy(model)
    calls = calls_of(original, sequences)
    alphas = theirs(model, sequences, given.bits)
    print("| factors in | of | alpha, ours | by the output | theirs | error, ours | theirs |")
    print("|---|---|---|---|---|---|---|")
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        "v_proj": ("self_attn.o_proj",),
        "up_proj": ("mlp.down_proj",),
    }
    same = judged = 0
    for name, alpha in alphas.items():
        layer, last = ".".join(name.split(".")[:3]), name.rpartition(".")[2]
        members = [f"{layer}.{one}" for one in readers[last]]
        search = Search(
            [weights[one] for one in members], [statistics[one] for one in members], given.bits
        )
        costs = [search.cost(search.factors(Fraction(step, GRID))) for step in range(GRID)]
        own = costs.index(min(costs))
        other = round(alpha * GRID)
        same += own == other
        alike = own
        if len(members) > 1:
            parent = members[0].rpartition(".")[0]
            linears = [original.get_submodule(one) for one in members]
            alike = search.by_output(original.get_submodule(parent), calls[parent], linears)
        judged += alike == other
        theirs_cost = search.cost(search.factors(Fraction(min(other, GRID), GRID)))
        print(
            f"| {name} | {', '.join(one.rpartition('.')[2] for one in members)} | {own}/{GRID} "
            f"| {alike}/{GRID} | {other}/{GRID} | {costs[own] / costs[0]:.4f} "
            f"| {theirs_cost / costs[0]:.4f} |",
            flush=True,
        )
    print(f"\n{same} of {len(alphas)} exponents are the same, by the output {judged}")


if __name__ == "__main__":
    main()
