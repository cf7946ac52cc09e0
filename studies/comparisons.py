"""reallm beside the libraries that a user would pick instead: quality at true stored bits.

    python studies/comparisons.py --write comparisons.md --plot comparisons.png \\
        --rows rows.jsonl \\
        --model demo demo/model demo/heldout.txt window=256 bytes=60000 \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 bytes=60000

Every method codes the same matrices of the same model; all are evaluated on the CPU in float32 on
the same windows. Most are data-free. Where a model is given `stats=FILE`, by `reallm calibrate`
with the same windows, our calibrated recipes are measured too, and llama.cpp's codes with an
importance matrix (see `studies/ggml.py`); with `calibrate=FILE`, the text that it was made
from, also the methods of llm-compressor (see `studies/calibrated.py`).

Bits are counted from what a method really stores for these matrices: packed weights, scales, zero
points and tables. The others get float16 weights, so that they store 16-bit scales.
`pip install '.[comparisons,plots]' llama-cpp-python` brings all but llm-compressor, which wants
versions of transformers of its own: install it with this project into another environment. With
`--rows FILE` each row is kept as soon as it is measured, and a later run takes those that are
there: one that was interrupted goes on, and one in another environment adds what that one has.
What is not installed, or fails here, is named below the table. The options of `--model` are
those of `studies/results.py`.

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
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reallm_compiler as reallm
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from studies import calibrated, ggml, libraries
from studies.pages import LINEAR_ONLY, keep_row, read_rows
from studies.results import Subject, needs_statistics

DATA_FREE = tuple(f"reallm-{bits}bit-data-free" for bits in ("2", "3", "4", "4.5", "5"))
CALIBRATED = tuple(f"reallm-{bits}bit" for bits in ("2", "2.5", "3", "4"))
OURS = (*DATA_FREE, *CALIBRATED, "nf4", "rtn-4bit")

MARKERS = {
    ("reallm", False): ("o", "reallm, data-free"),
    ("reallm", True): ("*", "reallm, calibrated"),
    (calibrated.PACKAGE, True): ("P", "llm-compressor, calibrated"),
    (ggml.PACKAGE, True): ("X", "llama.cpp, importance matrix"),
    ("hqq", False): ("s", "hqq"),
    ("optimum-quanto", False): ("^", "optimum-quanto"),
    ("bitsandbytes", False): ("D", "bitsandbytes"),
}
"""How a family is drawn, and what it is called, without data and with."""


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
    version: str = ""
    """Package and version of the library."""


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


class Comparison:
    """One model, and every method on it.

    Args:
        subject: the model and its text.
        only: globs on the names of the other methods.
        mirror: measure with errors turned round too.
        rows: the file of what was measured before, which gets what is measured now.

    Attributes:
        points: what was measured, by name.
        left_out: why a method was not.
    """

    def __init__(self, subject: Subject, only: list[str], mirror: bool, rows: Path | None) -> None:
        self.subject, self.only, self.mirror, self.rows = subject, only, mirror, rows
        self.left_out: dict[str, str] = {}
        plan = reallm.plan({"reallm": 1}, model=subject.folder).budget()
        self.names = [matrix.name for matrix in plan.matrices]
        self.numel = plan.totals.numel
        self.points: dict[str, Point] = {}
        for row in read_rows(rows, subject.inputs):
            if not (mirror and row["mirrored"] is None):
                self.points[row["name"]] = Point(**row)

    @cached_property
    def original(self) -> tuple[Any, Any]:
        """The model itself, which remembers its logits, and its tokenizer."""
        model, tokenizer = load_for_evaluation(self.subject.folder)
        return Remembered(model), tokenizer

    @property
    def base(self) -> Point:
        """The original on the text."""
        if "(original)" not in self.points:
            model, tokenizer = self.original
            found = evaluate(model, tokenizer, self.subject.text, **self._options)
            self._keep(Point("(original)", "", 16, found.perplexity, found.bits_per_byte, 0.0))
        return self.points["(original)"]

    def ours(self, recipe: str) -> None:
        """Measure one of our recipes, which keeps embeddings and heads."""
        needed = needs_statistics(recipe)
        if recipe in self.points:
            return
        if needed and self.subject.statistics is None:
            self.left_out[recipe] = "no `stats=FILE` was given"
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.reallm"
            report = reallm.compile(
                {"reallm": 1, "extends": recipe, "rules": [LINEAR_ONLY]},
                model=self.subject.folder,
                output=path,
                device="cpu",
                statistics=self.subject.statistics if needed else None,
            )
            model, _ = load_for_evaluation(path)
        bits = float(report.budget.totals.exact_bits)
        self._add(model, Point(recipe, "reallm", bits, 0, 0, 0, calibrated=needed))

    def others(self) -> None:
        """Measure all methods of other libraries that are wanted and not known."""
        subject, text = self.subject, self.subject.calibration
        for name, package, make in libraries.methods():
            self._other(name, package, partial(self._by_matrix, make))
        for name, kind in ggml.methods() if subject.statistics is not None else []:
            self._other(name, ggml.PACKAGE, partial(self._by_importance, kind), True)
        for name, coded in calibrated.methods() if text is not None else []:
            assert text is not None
            assert subject.window is not None, "give `window=N`"
            whole = partial(coded, subject.folder, text, subject.window)
            self._other(name, calibrated.PACKAGE, whole, True)

    def _other(
        self,
        name: str,
        package: str,
        make: Callable[[], tuple[Any, int]],
        calibrated: bool = False,
    ) -> None:
        if name in self.points or not any(fnmatchcase(name, glob) for glob in self.only):
            return
        try:
            model, bits = make()
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            self.left_out[name] = (str(error).splitlines() or [type(error).__name__])[0][:120]
            return
        version = f"{package} {importlib.metadata.version(package)}"
        point = Point(name, package, bits / self.numel, 0, 0, 0, None, calibrated, version)
        self._add(model, point)

    def _by_matrix(self, make: Callable[[], libraries.Quantize]) -> tuple[Any, int]:
        """The model with each matrix coded by itself, and the bits of all."""
        quantize, bits = make(), 0
        model, _ = load_for_evaluation(self.subject.folder)
        for name in self.names:
            weight = model.get_parameter(f"{name}.weight")
            decoded, stored = quantize(weight.data.to(torch.float16))
            weight.data = decoded.float().view(weight.shape)
            bits += stored
        return model, bits

    def _by_importance(self, make: Callable[[], ggml.Quantize]) -> tuple[Any, int]:
        """The same, of a method that knows how much each column matters."""
        quantize, bits = make(), 0
        model, _ = load_for_evaluation(self.subject.folder)
        assert self.subject.statistics is not None  # `others` asks
        with StatisticsFile(self.subject.statistics) as file:
            for name in self.names:
                inputs = file.read(name).inputs
                weight = model.get_parameter(f"{name}.weight")
                squares = inputs if inputs.dim() == 1 else inputs.diagonal()
                weight.data, stored = quantize(weight.data, squares)
                bits += stored
        return model, bits

    def _add(self, model: Any, point: Point) -> None:
        """Measure a model, and keep it as the point."""
        original, tokenizer = self.original
        found = evaluate(model, tokenizer, self.subject.text, reference=original, **self._options)
        assert found.kl is not None  # there is a reference
        assert math.isfinite(found.kl), point.name
        mirrored = None
        if self.mirror and point.family != calibrated.PACKAGE:  # AWQ changes more than matrices
            for name in self.names:
                weight = model.get_parameter(f"{name}.weight")
                exact = original.get_parameter(f"model.{name}.weight").data
                weight.data = 2 * exact - weight.data
            turned = evaluate(model, tokenizer, self.subject.text, **self._options)
            mirrored = turned.perplexity
        self._keep(
            replace(
                point,
                perplexity=found.perplexity,
                bits_per_byte=found.bits_per_byte,
                kl=found.kl,
                mirrored=mirrored,
            )
        )

    def _keep(self, point: Point) -> None:
        self.points[point.name] = point
        keep_row(asdict(point), self.subject.inputs, self.rows)

    @property
    def _options(self) -> dict[str, Any]:
        return {"window": self.subject.window, "separator": self.subject.separator}


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
    for axis, (subject, points) in zip(axes[0], results, strict=True):
        for color, ((family, with_text), (marker, label)) in enumerate(MARKERS.items()):
            of = [p for p in points if (p.family, p.calibrated) == (family, with_text)]
            own = sorted((p.bits, max(p.kl, 1e-6)) for p in of)
            if own:
                axis.plot(
                    *zip(*own, strict=True), marker, label=label, alpha=0.8, color=f"C{color}"
                )
        axis.set_yscale("log")
        axis.set_title(subject.name)
        axis.set_xlabel("stored bits per weight")
        axis.set_ylabel("KL to the original, nats per token")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--recipe", action="append", help="of ours (default: those of reallm, nf4)")
    parser.add_argument("--only", action="append", help="glob on the names of the other methods")
    parser.add_argument(
        "--mirror", action="store_true", help="measure with errors turned round too"
    )
    parser.add_argument(
        "--rows", type=Path, help="keep each row here, and take those that are there already"
    )
    parser.add_argument("--write", type=Path, help="write the tables here as well")
    parser.add_argument("--plot", type=Path, help="a picture of all models (extra `plots`)")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # libraries warn about what they would do on a GPU
    torch.manual_seed(0)
    results, lines, left_out, versions = [], [], [], set()
    for words in given.model:
        subject = Subject.parse(words)
        study = Comparison(subject, given.only or ["*"], given.mirror, given.rows)
        for recipe in given.recipe or OURS:
            study.ours(recipe)
        study.others()
        base = study.base
        points = [point for point in study.points.values() if point is not base]
        results.append((subject, points))
        lines += table(subject, base, points)
        left_out += [f"Not run: {subject.name}, {n} ({why})." for n, why in study.left_out.items()]
        versions |= {point.version for point in points if point.version}
    machine = (
        *(
            f"torch {torch.__version__}",
            f"transformers {importlib.metadata.version('transformers')}",
        ),
        *sorted(versions),
        *(f"{os.cpu_count()} cores", torch.backends.cpu.get_cpu_capability()),
        f"Python {platform.python_version()}",
    )
    text = "\n".join([*lines, *left_out, ", ".join(machine) + "."]) + "\n"
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    if given.plot:
        plot(given.plot, results)


if __name__ == "__main__":
    main()
