"""Every shipped recipe on given models: size, quality and compile time, as one Markdown page.

    python studies/results.py --write docs/results.md \\
        --model demo demo/model demo/heldout.txt window=256 \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 bytes=200000 \\
        --embeddings reallm-2bit-data-free reallm-4bit-data-free

Each `--model` takes a name, a checkpoint folder, a text, and options:

    window=N       tokens of a window (default: the protocol's own)
    separator=S    documents of the text are separated by S and stand by themselves
    drop=N         leave out the last N documents, such as one that is cut
    documents=N    only the last N documents (of the rest)
    bytes=N        only the first N bytes of the text
    stats=FILE     what `reallm calibrate` measured, for the recipes that need it
    calibrate=FILE the text by which blocks learn, for the recipes with `fit`
    sequences=NxT  blocks learn by N sequences of T tokens (default: what the recipe says)

Compile times are seconds of processor time on this machine; all else is exact. With `--rows FILE`
each row is kept as soon as it is measured, and the same command goes on after an interruption. Rows
of archives of another length are measured again; after a change of code that leaves the lengths as
they are, begin with another file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import reallm_compiler as reallm
from reallm_compiler.evaluate import Evaluation, evaluate, load_for_evaluation
from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.recipe import list_shipped, load_recipe
from studies.pages import digest_of, keep_row, read_rows, weights_digest, write_part

SHIPPED: dict[str, Any] = {}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "kept": {"keep": "source"},
    "8 bits (as shipped)": SHIPPED,
    "4 bits (`normal_float`)": {
        "set": {
            "quantizer": {"kind": "normal_float", "bits": 4},
            "scales": {"kind": "absmax", "per": "block", "block": 64, "bits": 8},
        }
    },
}
"""What a rule for embeddings and heads says, by its name in the table."""

MOST_TRAINING = 10**14
"""Operations of training above which a recipe is not run here: hours on a few cores."""


@dataclass(frozen=True)
class Subject:
    """A model, its text, and how it is evaluated."""

    name: str
    folder: Path
    text: str
    window: int | None
    separator: str | None
    statistics: Path | None
    calibration: Path | None
    sequences: tuple[int, int] | None

    @classmethod
    def parse(cls, words: list[str]) -> Subject:
        name, folder, text_path, *rest = words
        options = dict(word.split("=", 1) for word in rest)
        unknown = set(options) - {"window", "separator", "drop", "documents", "bytes"}
        unknown -= {"stats", "calibrate", "sequences"}
        if unknown:
            raise SystemExit(f"unknown option: {sorted(unknown)[0]}")
        text = Path(text_path).read_text(encoding="utf-8")
        separator = options.get("separator")
        if "documents" in options and separator is not None:
            parts = [part for part in text.split(separator) if part.strip()]
            parts = parts[: len(parts) - int(options.get("drop", 0))]
            text = separator.join(parts[-int(options["documents"]) :])
        if "bytes" in options:
            text = text.encode()[: int(options["bytes"])].decode(errors="ignore")
        window = int(options["window"]) if "window" in options else None
        statistics = Path(options["stats"]) if "stats" in options else None
        calibration = Path(options["calibrate"]) if "calibrate" in options else None
        sequences = None
        if "sequences" in options:
            samples, tokens = options["sequences"].split("x")
            sequences = int(samples), int(tokens)
        return cls(name, Path(folder), text, window, separator, statistics, calibration, sequences)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What a row is measured by."""
        found = {
            "model": self.name,
            "weights": weights_digest(self.folder),
            "text": digest_of(self.text, self.window, self.separator),
        }
        if self.statistics is not None:
            found["statistics"] = digest_of(self.statistics)
        if self.calibration is not None:
            found["calibration"] = digest_of(self.calibration, self.sequences)
        return found

    def learning(self, recipe: str | dict[str, Any]) -> str | dict[str, Any]:
        """A recipe whose blocks learn by so many sequences of so many tokens."""
        fit = load_recipe(recipe).fit
        if fit is None or self.sequences is None:
            return recipe
        samples, window = self.sequences
        document = {"reallm": 1, "extends": recipe} if isinstance(recipe, str) else recipe
        changed = {**fit.model_dump(mode="json"), "samples": samples, "window": window}
        return {**document, "fit": changed}


@dataclass(frozen=True)
class Measured:
    """A model compiled by a recipe.

    Attributes:
        exact_bits, paper_bits: per weight of the linear layers.
        outside: exact bits per weight of the embeddings and heads; None if they are kept.
        file_bytes: length of the archive.
        result: what was measured on the text.
        seconds: processor time of the compile, that of its workers included; None if that was not
            kept.
    """

    exact_bits: float
    paper_bits: float
    outside: float | None
    file_bytes: int
    result: Evaluation
    seconds: float | None


class Study:
    """One model: the original, and what recipes make of it.

    What is measured goes into a file of rows as well, so that a run that is interrupted goes on.
    """

    def __init__(
        self, subject: Subject, workers: int, rows: Path | None, cache: Path | None = None
    ) -> None:
        self.subject = subject
        self.cache = cache
        self.workers = workers
        self.rows = rows
        self.options: dict[str, Any] = {"window": subject.window, "separator": subject.separator}
        plain = reallm.plan({"reallm": 1}, model=subject.folder).budget()
        self.linear = {row.name for row in plain.matrices}
        self.totals = plain.totals
        self.known = {
            self._key(row["recipe"], row["file_bytes"]): row
            for row in read_rows(rows, subject.inputs)
            if "file_bytes" in row
        }

    @property
    def name(self) -> str:
        """The model's name on the page."""
        return self.subject.name

    @cached_property
    def original(self) -> tuple[Any, Any]:
        """The model itself, and its tokenizer."""
        return load_for_evaluation(self.subject.folder)

    @cached_property
    def base(self) -> Evaluation:
        """The original on the text."""
        return self._row("(original)", 0, self._measure_original)[0]

    def compiled(self, recipe: str | dict[str, Any]) -> Measured:
        """An archive of the model by a recipe, measured and let go."""
        recipe = self.subject.learning(recipe)
        budget = reallm.plan(recipe, model=self.subject.folder).budget()
        planned = budget.totals.file_bytes
        found, seconds = self._row(recipe, planned, lambda: self._measure(recipe, planned))
        inside = [row for row in budget.matrices if row.name in self.linear]
        outside = [row for row in budget.matrices if row.name not in self.linear]
        weights = sum(row.numel for row in inside)
        return Measured(
            exact_bits=_bits(inside),
            paper_bits=float(sum(row.paper_bits * row.numel for row in inside) / weights),
            outside=_bits(outside) if outside else None,
            file_bytes=planned,
            result=found,
            seconds=seconds,
        )

    def is_known(self, recipe: dict[str, Any]) -> bool:
        """Whether an archive by this recipe was measured before."""
        planned = reallm.plan(recipe, model=self.subject.folder).budget().totals.file_bytes
        return self._key(recipe, planned) in self.known

    def _measure_original(self) -> tuple[Evaluation, float]:
        return evaluate(*self.original, self.subject.text, **self.options), 0.0

    def _measure(self, recipe: str | dict[str, Any], planned: int) -> tuple[Evaluation, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.reallm"
            began = cpu_seconds()
            reallm.compile(
                recipe,
                model=self.subject.folder,
                output=path,
                statistics=self.subject.statistics if needs_statistics(recipe) else None,
                text=self.subject.calibration if needs_text(recipe) else None,
                device="cpu",
                workers=self.workers,
                cache=self.cache,
            )
            seconds = cpu_seconds() - began
            stored = path.stat().st_size
            if stored != planned:
                raise SystemExit(f"{recipe}: {stored} bytes stored, {planned} planned")
            model, _ = load_for_evaluation(path)
            original, tokenizer = self.original
            return (
                evaluate(model, tokenizer, self.subject.text, reference=original, **self.options),
                seconds,
            )

    def _row(
        self,
        recipe: str | dict[str, Any],
        planned: int,
        measure: Callable[[], tuple[Evaluation, float]],
    ) -> tuple[Evaluation, float | None]:
        """What was measured before of an archive of this length, or is now."""
        known = self.known.get(self._key(recipe, planned))
        if known is not None:
            return Evaluation(**known["evaluation"]), known["seconds"]
        found, seconds = measure()
        row = {
            "recipe": recipe,
            "file_bytes": planned,
            "evaluation": asdict(found),
            "seconds": seconds,
        }
        keep_row(row, self.subject.inputs, self.rows)
        return found, seconds

    @staticmethod
    def _key(recipe: str | dict[str, Any], planned: int) -> str:
        return json.dumps([recipe, planned], sort_keys=True)


def needs_statistics(recipe: str | dict[str, Any]) -> bool:
    """Whether a compile by this recipe needs what `reallm calibrate` measured."""
    return load_recipe(recipe).statistics == "required"


def needs_text(recipe: str | dict[str, Any]) -> bool:
    """Whether blocks learn by a text in a compile by this recipe."""
    return load_recipe(recipe).fit is not None


def _bits(rows: list[MatrixBudget]) -> float:
    """Exact bits per weight of some matrices together."""
    return 8 * sum(row.nbytes for row in rows) / sum(row.numel for row in rows)


def recipes_table(study: Study, recipes: list[str]) -> list[str]:
    """The table of all recipes, the original first."""
    subject, base = study.subject, study.base
    bits = f"{float(study.totals.exact_bits):g} | {float(study.totals.paper_bits):g}"
    rows = [
        f"| (original) | {bits} | | {_folder_bytes(subject.folder):,} | {base.perplexity:.3f} "
        f"| {base.bits_per_byte:.4f} | 0 | |"
    ]
    for recipe in recipes:
        changed = subject.learning(recipe)
        training = reallm.plan(changed, model=subject.folder).budget().totals.training_operations
        if training > MOST_TRAINING:
            why = f"not run: {training:.1e} operations of training"
            rows.append(f"| `{recipe}` | {why} | | | | | | | |")
            continue
        if needs_statistics(recipe) and subject.statistics is None:
            rows.append(f"| `{recipe}` | not run: no `stats=FILE` for this model | | | | | | | |")
            continue
        if needs_text(recipe) and subject.calibration is None:
            rows.append(
                f"| `{recipe}` | not run: no `calibrate=FILE` for this model | | | | | | | |"
            )
            continue
        one = study.compiled(recipe)
        rows.append(
            f"| `{recipe}` | {one.exact_bits:.4f} | {one.paper_bits:.4f} | {_outside(one)} "
            f"| {one.file_bytes:,} | {one.result.perplexity:.3f} | {one.result.bits_per_byte:.4f} "
            f"| {one.result.kl:.4f} | {'' if one.seconds is None else f'{one.seconds:.1f}'} |"
        )
    return [
        f"## {subject.name}",
        "",
        f"{study.totals.numel:,} weights in {len(study.linear)} matrices of linear layers; "
        f"{base.tokens:,} predicted tokens, "
        + (
            f"documents of at most {base.window} tokens."
            if subject.separator
            else f"windows of {base.window}."
        ),
        "",
        "| recipe | exact bits | paper bits | embeddings | file bytes | perplexity "
        "| bits per byte | KL (nats) | compile (CPU s) |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def embeddings_table(study: Study, recipes: list[str]) -> list[str]:
    """Embeddings and heads kept, and coded with 8 and 4 bits."""
    rows = []
    for recipe in recipes:
        for words, change in EMBEDDINGS.items():
            rule = {"role": ["embedding", "head"], **change}
            changed = {"reallm": 1, "extends": recipe, "rules": [rule]}
            one = study.compiled(recipe if change == SHIPPED else changed)
            rows.append(
                f"| `{recipe}` | {words} | {_outside(one)} | {one.file_bytes:,} "
                f"| {one.result.perplexity:.3f} | {one.result.kl:.5f} |"
            )
    return [
        f"### {study.subject.name}: embeddings and heads",
        "",
        "| recipe | embeddings and heads | exact bits of these | file bytes | perplexity "
        "| KL (nats) |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _outside(one: Measured) -> str:
    return "kept" if one.outside is None else f"{one.outside:.4f}"


def _folder_bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--recipe", action="append", help="only these (default: all shipped)")
    parser.add_argument(
        "--embeddings", nargs="*", help="recipes to try with embeddings kept, and at fewer bits"
    )
    parser.add_argument(
        "--rows", type=Path, help="keep each row here, and take those that are there already"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", type=Path, help="put it into this page as well")
    given = parser.parse_args()
    recipes = given.recipe or list_shipped()
    page = [
        "# Results",
        "",
        "Printed by `python studies/results.py` (its first lines say how to call it). Bits are "
        "per weight of the linear layers, and under `embeddings` (heads too) exact bits per weight "
        "of these; file bytes count everything. KL is the mean over predicted tokens of "
        "KL(original || compressed). Smaller is better everywhere. Compile times are processor "
        "seconds; one that is empty was not kept.",
        "",
        f"torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, "
        f"{given.workers} worker(s).",
        "",
    ]
    for words in given.model:
        study = Study(Subject.parse(words), given.workers, given.rows)
        page += recipes_table(study, recipes)
        if given.embeddings:
            page += embeddings_table(study, given.embeddings)
    text = "\n".join(page).rstrip() + "\n"
    print(text)
    if given.write:
        write_part(given.write, "results", text)


if __name__ == "__main__":
    main()
