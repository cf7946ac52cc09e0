"""Every method that is a recipe at 2, 3 and 4 bits: one table for each model, and a plot.

    python studies/methods.py --write docs/methods.md --plot docs/methods.png --rows rows.jsonl \\
        --model demo demo/model demo/heldout.txt window=256 stats=demo.stats calibrate=demo.txt \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 stats=my-model.stats

`--model` takes what `studies/results.py` takes. A method stands in a table at the bits that its
recipes have, and a recipe without a number in its name at those to which its codes can be set.
Exact bits are those of the linear layers; file bytes count everything. Compile time is wall time,
and peak memory the largest resident set, of `reallm compile` in a process of its own with one
worker. With `--rows FILE` each row is kept as soon as it is measured, and what is compiled of the
next one in `FILE.work`: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import reallm_compiler as reallm
from reallm_compiler.evaluate import Evaluation, evaluate, load_for_evaluation
from reallm_compiler.recipe import list_shipped, load_recipe
from studies.pages import keep_row, read_rows, write_part
from studies.results import MOST_TRAINING, Study, Subject, needs_statistics, needs_text

PROGRAM = """
import atexit, pathlib, sys
from reallm_cli.main import run
from reallm_compiler.system import peak_memory
kept = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: kept.write_text(str(peak_memory())))
run()
"""
"""The command line, which leaves its peak memory in a file."""
BITS = (2, 3, 4)
NUMBERS = 16
"""What stands for the bits of a code where weights are kept as numbers."""
MOST_BITS = 8
"""Exact bits up to which a method stands in the plot."""
METHODS = (
    "rtn",
    "nf",
    "norm-sorted",
    "gptq",
    "gptq-act-order",
    "awq",
    "awq-folded",
    "omniquant",
    "apiq",
    "autoround",
    "spqr",
    "quarot",
    "quip-sharp",
    "aqlm-2x8",
    "aqlm-1x16",
    "qtip",
    "lora",
    "qlora",
    "loftq",
    "lq-lora",
    "lq-lora-fisher",
    "monarch",
    "paper",
    "reallm-data-free",
    "reallm",
)
"""Names of recipes without their bits, in the order of the table."""


@dataclass(frozen=True)
class Row:
    """One method at so many bits, measured."""

    method: str
    recipe: str
    bits: int
    changed: bool
    exact_bits: float
    file_bytes: int
    perplexity: float
    kl: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Candidate:
    """A method at so many bits.

    Attributes:
        method: one of `METHODS`.
        recipe: a shipped recipe.
        bits: of a code.
        changed: the recipe is for other bits, and its codes are set to these.
    """

    method: str
    recipe: str
    bits: int
    changed: bool

    def document(self) -> dict[str, Any]:
        """The recipe as plain data."""
        document: dict[str, Any] = {"reallm": 1, "extends": self.recipe}
        if self.changed:
            defaults: dict[str, Any] = {"quantizer": {"bits": self.bits}}
            if hasattr(load_recipe(self.recipe).plan.scales, "code_bits"):
                defaults["scales"] = {"code_bits": self.bits}
            document["defaults"] = defaults
        return document


def candidates() -> Iterator[Candidate]:
    """The methods that are shipped, in the order of the table."""
    shipped = list_shipped()
    for method in METHODS:
        head, _, tail = method.partition("-")
        named = {
            bits: name
            for bits in BITS
            for name in (
                f"{method}{bits}",
                f"{method}-{bits}bit",
                f"{head}-{bits}bit-{tail}",
            )
            if name in shipped
        }
        for bits, name in named.items():
            yield Candidate(method, name, bits, changed=False)
        if not named and method in shipped:
            own = getattr(load_recipe(method).plan.quantizer, "bits", NUMBERS)
            for bits in (own,) if own == NUMBERS else BITS:
                one = Candidate(method, method, bits, changed=bits != own)
                if _fits(one):
                    yield one


def _fits(candidate: Candidate) -> bool:
    """Whether the recipe's kinds have such bits."""
    try:
        load_recipe(candidate.document())
    except reallm.ReallmError:
        return False
    return True


class Measuring:
    """The rows of one model, those of an earlier run taken as they are."""

    def __init__(self, study: Study, rows: Path | None, *, measure: bool = True) -> None:
        self.study = study
        self._new = measure
        self._path = rows
        self._known = {
            (row["recipe"], row["bits"], row["file_bytes"]): Row(**row)
            for row in read_rows(rows, study.subject.inputs)
        }

    def row(self, candidate: Candidate) -> Row | None:
        """What is measured of a candidate; None if it cannot be run here."""
        subject = self.study.subject
        document = subject.learning(candidate.document())
        assert isinstance(document, dict)  # as the candidate's
        budget = reallm.plan(document, model=subject.folder).budget()
        planned = budget.totals.file_bytes
        known = self._known.get((candidate.recipe, candidate.bits, planned))
        if known is not None:
            return known
        statistics = needs_statistics(document)
        if not self._new or budget.totals.training_operations > MOST_TRAINING:
            return None
        if statistics and subject.statistics is None:
            return None
        if needs_text(document) and subject.calibration is None:
            return None
        found, seconds, peak = self._measure(document, planned, statistics)
        inside = [row for row in budget.matrices if row.name in self.study.linear]
        assert found.kl is not None
        row = Row(
            method=candidate.method,
            recipe=candidate.recipe,
            bits=candidate.bits,
            changed=candidate.changed,
            exact_bits=8 * sum(row.nbytes for row in inside) / sum(row.numel for row in inside),
            file_bytes=planned,
            perplexity=found.perplexity,
            kl=found.kl,
            seconds=seconds,
            peak_bytes=peak,
        )
        keep_row(asdict(row), subject.inputs, self._path)
        return row

    def _measure(
        self, document: dict[str, Any], planned: int, statistics: bool
    ) -> tuple[Evaluation, float, int]:
        """Quality, seconds of the compile, and its peak memory in bytes."""
        subject = self.study.subject
        with self._folder(document, planned) as name:
            folder = Path(name)
            folder.mkdir(parents=True, exist_ok=True)
            recipe, path = folder / "recipe.yaml", folder / "out.reallm"
            recipe.write_text(json.dumps(document), encoding="utf-8")
            command = ["compile", str(recipe), "--model"]
            command += [str(subject.folder), "-o", str(path), "--device", "cpu", "--workers", "1"]
            if statistics:
                command += ["--stats", str(subject.statistics)]
            if needs_text(document):
                command += ["--text", str(subject.calibration)]
            seconds, peak = _spent(command, folder)
            if path.stat().st_size != planned:
                raise SystemExit(f"{document}: {path.stat().st_size} bytes, {planned} planned")
            model, _ = load_for_evaluation(path)
            original, tokenizer = self.study.original
            found = evaluate(
                model, tokenizer, subject.text, reference=original, **self.study.options
            )
            if self._path is not None:
                shutil.rmtree(folder)
        return found, seconds, peak

    def _folder(self, document: dict[str, Any], planned: int) -> AbstractContextManager[str]:
        """Where a recipe is compiled: beside the rows if they are kept."""
        if self._path is None:
            return tempfile.TemporaryDirectory()
        work = self._path.with_suffix(self._path.suffix + ".work")
        return nullcontext(str(work / f"{self.study.name}-{document['extends']}-{planned}"))


def _spent(command: list[str], folder: Path) -> tuple[float, int]:
    """Wall seconds and peak memory in bytes of a compile, with those of runs that were cut off."""
    kept, own = folder / "spent.json", folder / "peak"
    seconds, peak = json.loads(kept.read_text()) if kept.exists() else (0.0, 0)
    began = time.perf_counter()
    whole = [sys.executable, "-c", PROGRAM, str(own), *command]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # it is interrupted too, and ends by itself
        status = process.wait()
    seconds += time.perf_counter() - began
    peak = max(peak, int(own.read_text()))
    kept.write_text(json.dumps([seconds, peak]))
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return seconds, peak


def table(study: Study, rows: list[Row]) -> list[str]:
    """The rows as a table, the original first."""
    base = study.base
    lines = [
        f"| (original) | | 16 | | {base.perplexity:.3f} | 0 | | |",
    ]
    for row in rows:
        name = f"`{row.recipe}`" + (f", {row.bits}-bit codes" if row.changed else "")
        lines.append(
            f"| {name} | {row.bits} | {row.exact_bits:.4f} | {row.file_bytes:,} "
            f"| {row.perplexity:.3f} | {row.kl:.4f} | {row.seconds:.0f} "
            f"| {row.peak_bytes / 1e6:.0f} |"
        )
    return [
        f"## Measured on {study.name}",
        "",
        "Printed by `python studies/methods.py` (its first lines say how to call it). KL is the "
        f"mean over {base.tokens:,} predicted tokens of KL(original || compressed), in windows of "
        f"{base.window}; times were taken on a machine that did other work too."
        + (
            " Blocks learn by {} sequences of {} tokens.".format(*study.subject.sequences)
            if study.subject.sequences and any(needs_text(row.recipe) for row in rows)
            else ""
        ),
        "",
        "| recipe | bits of a code | exact bits | file bytes | perplexity | KL (nats) "
        "| compile (s) | peak memory (MB) |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def plot(path: Path, tables: dict[str, list[Row]]) -> None:
    """KL by exact bits, a panel for each model and a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(tables), figsize=(1 + 6 * len(tables), 6), squeeze=False
    )
    markers = "osv^<>Dph*X8P"
    for axis, (name, rows) in zip(panels[0], tables.items(), strict=True):
        for index, method in enumerate(METHODS):
            own = sorted((row.exact_bits, row.kl) for row in rows if row.method == method)
            if own and own[0][0] < MOST_BITS:
                style = f"{markers[index % len(markers)]}-"
                color = f"C{index % 10}"
                axis.plot(*zip(*own, strict=True), style, color=color, label=method, markersize=5)
        axis.set_yscale("log")
        axis.set_xlabel("exact bits per weight")
        axis.set_ylabel("KL(original || compressed), nats")
        axis.set_title(name)
        axis.grid(visible=True, which="both", alpha=0.3)
    pairs = [axis.get_legend_handles_labels() for axis in panels[0]]
    shown = {
        label: handle
        for handles, labels in pairs
        for handle, label in zip(handles, labels, strict=True)
    }
    known = [method for method in METHODS if method in shown]
    panels[0][0].legend([shown[method] for method in known], known, fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--method", action="append", choices=METHODS, help="only these")
    parser.add_argument("--as-shipped", action="store_true", help="no recipe at other bits")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the rows as they are")
    parser.add_argument(
        "--rows", type=Path, help="keep each row here, and take those that are there already"
    )
    parser.add_argument("--write", type=Path, help="put the tables into this page as well")
    parser.add_argument("--plot", type=Path, help="a picture (extra `plots`)")
    given = parser.parse_args()
    wanted = [
        one
        for one in candidates()
        if (not given.method or one.method in given.method)
        and not (given.as_shipped and one.changed)
    ]
    page, tables = [], {}
    for words in given.model:
        study = Study(Subject.parse(words), 1, given.rows and given.rows.with_suffix(".base"))
        measuring = Measuring(study, given.rows, measure=not given.kept)
        rows = []
        for candidate in wanted:
            row = measuring.row(candidate)
            if row is None:
                missing = f"{candidate.recipe} at {candidate.bits} bits"
                print(f"{study.name}: {missing}: not run here", file=sys.stderr)
            else:
                rows.append(row)
        page += table(study, rows)
        tables[study.name] = rows
    text = "\n".join(page).rstrip() + "\n"
    print(text)
    if given.write:
        write_part(given.write, "methods", text)
    if given.plot:
        plot(given.plot, tables)


if __name__ == "__main__":
    main()
