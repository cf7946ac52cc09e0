"""reallm beside the libraries that a user would pick instead: quality at true stored bits.

    python studies/comparisons.py --write comparisons.md --plot comparisons.png \\
        --model demo demo/model demo/heldout.txt window=256 bytes=60000 \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 bytes=60000

Every method codes the same matrices of the same model; all are evaluated on the CPU in float32 on
the same windows. Most are data-free. Where a model is given `stats=FILE`, by `reallm calibrate`
with the same windows, our calibrated recipes are measured too, and with `calibrate=FILE`, the text
that it was made from, those of llm-compressor (see `studies/calibrated.py`).

Bits are counted from what a method really stores for these matrices: packed weights, scales, zero
points and tables. The others get float16 weights, so that they store 16-bit scales.
`pip install '.[comparisons,plots]'` brings the data-free ones; llm-compressor wants versions of
transformers of its own, so install it with this project into another environment. One that is not
installed, or that fails here, is named below the table. The options of `--model` are those of
`studies/results.py`.

bitsandbytes gets a matrix as one list of blocks: its CPU version decodes matrices wrongly whose
rows are no whole number of blocks.

Beside a method stands the best of ours (by divergence) that has no more bits, a calibrated one
beside a calibrated one, with two ratios,
theirs / ours, of divergence and of perplexity: above 1 ours is better.

With `--mirror` every method is measured a second time with its errors turned round, W - E for
W + E. Part of what an error does to the loss changes its sign with it: that part is luck, better or
worse by which way the rounding fell. The mean of both ways is free of it: `excess, both ways`, in
nats of loss above the original's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reallm_compiler as reallm
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from studies import calibrated
from studies.pages import LINEAR_ONLY
from studies.results import Subject, needs_statistics

DATA_FREE = tuple(f"reallm-{bits}bit-data-free" for bits in ("2", "3", "4", "4.5", "5"))
CALIBRATED = tuple(f"reallm-{bits}bit" for bits in ("2", "2.5", "3", "4"))
OURS = (*DATA_FREE, *CALIBRATED, "nf4", "rtn-4bit")

Quantize = Callable[[Tensor], tuple[Tensor, int]]
"""A matrix [p, q] -> the matrix that the library gives back, and the bits that it stores."""


@dataclass(frozen=True)
class Point:
    """One method on one model."""

    name: str
    family: str
    bits: float
    perplexity: float
    bits_per_byte: float
    kl: float
    mirrored: float | None = None
    """Perplexity with the errors turned round."""
    calibrated: bool = False
    """Whether a text had a part in it."""


def stored_bits(*tensors: Tensor) -> int:
    """Bits of tensors as they are held."""
    return sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors)


def hqq(bits: int, group: int) -> Quantize:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        p, q = weight.shape
        linear = nn.Linear(q, p, bias=False)
        linear.weight.data = weight
        layer = HQQLinear(linear, config, compute_dtype=torch.float16, device="cpu")
        return layer.dequantize(), stored_bits(layer.W_q, layer.meta["scale"], layer.meta["zero"])

    return quantize


def quanto(bits: int, group: int | None) -> Quantize:
    import optimum.quanto as library

    kind = {2: library.qint2, 4: library.qint4, 8: library.qint8}[bits]

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        if group is None:
            scale = library.AbsmaxOptimizer()(weight, qtype=kind, axis=0)
            coded = library.quantize_weight(weight, kind, 0, scale, optimized=False)
            return coded.dequantize(), stored_bits(coded._data, coded._scale)
        scale, shift = library.MaxOptimizer()(weight, qtype=kind, axis=0, group_size=group)
        coded = library.quantize_weight(
            weight, kind, 0, scale, shift, group_size=group, optimized=False
        )
        return coded.dequantize(), stored_bits(coded._data._data, coded._scale, coded._shift)

    return quantize


def bitsandbytes(kind: str, block: int, double: bool) -> Quantize:
    import bitsandbytes.functional as library

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        # As one long list of blocks: where a row is no whole number of blocks, the CPU version of
        # 0.50 decodes a matrix wrongly. The blocks are the same ones.
        coded, state = library.quantize_4bit(
            weight.reshape(-1, block), blocksize=block, compress_statistics=double, quant_type=kind
        )
        bits = stored_bits(coded, state.absmax)
        if double:
            bits += stored_bits(state.state2.absmax, state.offset)
        return library.dequantize_4bit(coded, state), bits

    return quantize


def bitsandbytes_int8() -> Quantize:
    import bitsandbytes.functional as library

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        coded, scale, _ = library.int8_vectorwise_quant(weight)
        return coded.float() * scale[:, None] / 127, stored_bits(coded, scale)

    return quantize


def libraries() -> list[tuple[str, str, Callable[[], Quantize]]]:
    """Name, package and maker of every other method."""
    found: list[tuple[str, str, Callable[[], Quantize]]] = []
    for bits in (2, 3, 4, 8):
        for group in (32, 64, 128):
            name = f"hqq {bits} bit g{group}"
            found.append((name, "hqq", partial(hqq, bits, group)))
    for bits in (2, 4):
        for group in (32, 64, 128):
            name = f"quanto qint{bits} g{group}"
            found.append((name, "optimum-quanto", partial(quanto, bits, group)))
    found.append(("quanto qint8", "optimum-quanto", partial(quanto, 8, None)))
    for kind in ("nf4", "fp4"):
        for block in (64, 128):
            for double in (False, True):
                name = f"bitsandbytes {kind} b{block}" + (" double" if double else "")
                found.append((name, "bitsandbytes", partial(bitsandbytes, kind, block, double)))
    found.append(("bitsandbytes int8", "bitsandbytes", bitsandbytes_int8))
    return found


class Remembered(nn.Module):
    """A model whose logits are computed once for each input."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.seen: dict[bytes, object] = {}

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def forward(self, input_ids: Tensor, **rest: Any) -> object:
        key = input_ids.numpy().tobytes()
        if key not in self.seen:
            self.seen[key] = self.model(input_ids=input_ids, **rest)
        return self.seen[key]


def measure(
    subject: Subject, ours: list[str], only: list[str], mirror: bool, left_out: dict[str, str]
) -> tuple[Point, list[Point]]:
    """The original, and every method on one model."""
    original: Any
    model: Any
    original, tokenizer = load_for_evaluation(subject.folder)
    reference: Any = Remembered(original)
    options: dict[str, Any] = {
        "window": subject.window,
        "separator": subject.separator,
        "reference": reference,
    }
    weights: dict[str, Tensor] = {}
    points: list[Point] = []

    def add(name: str, family: str, bits: float, model: Any, calibrated: bool = False) -> None:
        found = evaluate(model, tokenizer, subject.text, **options)
        assert found.kl is not None  # there is a reference
        other = None
        if mirror and family != "llm-compressor":  # AWQ changes more than matrices
            for matrix in names:
                errors_turned = 2 * original.get_submodule(matrix).weight.data
                errors_turned -= model.get_submodule(matrix).weight.data
                model.get_submodule(matrix).weight.data = errors_turned
            plain = {**options, "reference": None}
            other = evaluate(model, tokenizer, subject.text, **plain).perplexity
        measured = (found.perplexity, found.bits_per_byte, found.kl, other)
        points.append(Point(name, family, bits, *measured, calibrated))
        print(subject.name, points[-1], file=sys.stderr, flush=True)

    for recipe in ours:
        needed = needs_statistics(recipe)
        if needed and subject.statistics is None:
            left_out[recipe] = f"{subject.name}: no `stats=FILE` was given"
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.reallm"
            linear = {"reallm": 1, "extends": recipe, "rules": [LINEAR_ONLY]}
            statistics = subject.statistics if needed else None
            report = reallm.compile(
                linear, model=subject.folder, output=path, device="cpu", statistics=statistics
            )
            model, _ = load_for_evaluation(path)
            names = [matrix.name for matrix in report.budget.matrices]
            add(recipe, "reallm", float(report.budget.totals.exact_bits), model, needed)
    model, _ = load_for_evaluation(subject.folder)
    weights = {name: model.get_submodule(name).weight.data.clone() for name in names}
    total = sum(weight.numel() for weight in weights.values())
    for name, package, make in libraries():
        if not any(fnmatchcase(name, glob) for glob in only):
            continue
        try:
            quantize, bits = make(), 0
            for matrix, weight in weights.items():
                decoded, stored = quantize(weight.to(torch.float16))
                model.get_submodule(matrix).weight.data = decoded.float().view(weight.shape)
                bits += stored
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            left_out[name] = f"{subject.name}: {first[:120]}"
            continue
        add(name, package, bits / total, model)
    text = subject.calibration
    for name, make_model in [] if text is None else calibrated.methods():
        if text is None or not any(fnmatchcase(name, glob) for glob in only):
            continue
        try:
            assert subject.window is not None, "give `window=N`"
            found, bits = make_model(subject.folder, text, subject.window)
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            left_out[name] = f"{subject.name}: {first[:120]}"
            continue
        add(name, "llm-compressor", bits / total, found, True)
    base = evaluate(original, tokenizer, subject.text, **options)
    return Point("(original)", "", 16, base.perplexity, base.bits_per_byte, 0.0), points


def beside(point: Point, points: list[Point]) -> Point | None:
    """The best of ours, by divergence, that is no larger."""
    ours = (own for own in points if own.family == "reallm" and own.calibrated == point.calibrated)
    smaller = [own for own in ours if own.bits <= point.bits]
    return min(smaller, key=lambda own: own.kl, default=None)


def excess(point: Point, base: Point) -> str:
    """Cells of the loss above the original's, as it is and free of luck."""
    if point.mirrored is None:
        return ""
    one, other = (math.log(p / base.perplexity) for p in (point.perplexity, point.mirrored))
    return f" {one:.5f} | {(one + other) / 2:.5f} |"


def table(subject: Subject, base: Point, points: list[Point]) -> list[str]:
    mirror = any(point.mirrored is not None for point in points)
    more = " excess (nats) | excess, both ways |" if mirror else ""
    rows = [
        f"## Quality: {subject.name}",
        "",
        f"Original: perplexity {base.perplexity:.3f}, {base.bits_per_byte:.4f} bits per byte.",
        "",
        f"| method | stored bits | perplexity | bits per byte | KL (nats) |{more} "
        "ours of no more bits | KL ratio | perplexity ratio |",
        "|---|---|---|---|---|" + ("---|---|" if mirror else "") + "---|---|---|",
    ]
    for point in sorted(points, key=lambda point: point.bits):
        verdict = "| |"
        if point.family != "reallm":
            best = beside(point, points)
            verdict = "none | |"
            if best is not None:
                apart, worse = point.kl / best.kl, point.perplexity / best.perplexity
                verdict = f"{best.name} | {apart:.2f} | {worse:.4f}"
        name = f"**{point.name}**" if point.family == "reallm" else point.name
        rows.append(
            f"| {name} | {point.bits:.4f} | {point.perplexity:.3f} | {point.bits_per_byte:.4f} "
            f"| {point.kl:.5f} |{excess(point, base)} {verdict} |"
        )
    return [*rows, ""]


def plot(path: Path, results: list[tuple[Subject, list[Point]]]) -> None:
    """KL over stored bits, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(6 * len(results), 5), squeeze=False)
    markers = {
        ("reallm", False): "o",
        ("reallm", True): "*",
        ("llm-compressor", True): "P",
        ("hqq", False): "s",
        ("optimum-quanto", False): "^",
        ("bitsandbytes", False): "D",
    }
    for axis, (subject, points) in zip(axes[0], results, strict=True):
        for (family, calibrated_), marker in markers.items():
            of = [p for p in points if (p.family, p.calibrated) == (family, calibrated_)]
            own = sorted((p.bits, max(p.kl, 1e-6)) for p in of)
            if own:
                label = f"{family}, calibrated" if calibrated_ else family
                axis.plot(*zip(*own, strict=True), marker, label=label, alpha=0.8)
        axis.set_yscale("log")
        axis.set_title(subject.name)
        axis.set_xlabel("stored bits per weight")
        axis.set_ylabel("KL to the original, nats per token")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def versions() -> str:
    found = []
    for package in (
        *("torch", "transformers", "hqq", "optimum-quanto", "bitsandbytes"),
        *("llmcompressor", "auto-round"),
    ):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--recipe", action="append", help="of ours (default: those of reallm, nf4)")
    parser.add_argument("--only", action="append", help="glob on the names of the other methods")
    parser.add_argument(
        "--mirror", action="store_true", help="measure with errors turned round too"
    )
    parser.add_argument("--write", type=Path, help="write the tables here as well")
    parser.add_argument("--plot", type=Path, help="a picture of all models (extra `plots`)")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # libraries warn about what they would do on a GPU
    torch.manual_seed(0)
    left_out: dict[str, str] = {}
    results, lines = [], []
    for words in given.model:
        subject = Subject.parse(words)
        base, points = measure(
            subject, given.recipe or list(OURS), given.only or ["*"], given.mirror, left_out
        )
        assert all(math.isfinite(point.kl) for point in points)
        results.append((subject, points))
        lines += table(subject, base, points)
    lines += [f"Not run: {name} ({reason})." for name, reason in left_out.items()]
    lines.append(
        f"{versions()}; {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}."
    )
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    if given.plot:
        plot(given.plot, results)


if __name__ == "__main__":
    main()
