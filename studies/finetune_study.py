"""How much of the perplexity that coding costs does tuning give back, at equal exact bits?

    python studies/finetune_study.py --write docs/finetune-study.md --bits 2 --bits 3 \\
        --model my-model PATH/TO/FOLDER TUNE.txt EVAL.txt window=256 block.lr=1e-3 e2e.lr=1e-3

For each model and width three archives are made from the shipped SVD-initialized recipe: as
compiled, after block-wise tuning, and after both stages; beside it the same with zero-initialized
factors. Tuning sees TUNE.txt, everything is measured on EVAL.txt. The share of the gap is

    (perplexity untuned, SVD - perplexity) / (perplexity untuned, SVD - perplexity of the original)

    python studies/finetune_study.py --work DIR --recipe reallm-2bit \\
        --model my-model PATH/TO/FOLDER TUNE.txt EVAL.txt stats=FILE learn=scales,tables,norms ...

With `--recipe` the archives are those of shipped recipes without factors, as compiled and after the
second stage; stats=FILE is what `reallm calibrate` measured, for recipes that need it.

Options of a model: window=N, separator=S, documents=N (the last N of EVAL.txt), bytes=N (the first
N of EVAL.txt), and any setting of a tuning run by its path (`block.epochs=4`, `e2e.loss=distill`).
Finished rows are kept in `--work DIR` and not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

import reallm_compiler as reallm
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from reallm_compiler.finetune import finetune
from reallm_compiler.recipe import load_recipe
from studies.pages import LINEAR_ONLY

RECIPES = {2: "reallm-2bit-tunable", 3: "reallm-3bit-tunable"}


class Study:
    """One model: its texts, how it is measured and how it is tuned."""

    def __init__(self, words: list[str], work: Path) -> None:
        self.name, folder, tune, held, *rest = words
        self.folder, self.tune = Path(folder), Path(tune)
        options: dict[str, Any] = dict(word.split("=", 1) for word in rest)
        text = Path(held).read_text(encoding="utf-8")
        self.separator = options.pop("separator", None)
        if "documents" in options:
            parts = [part for part in text.split(self.separator) if part.strip()]
            text = self.separator.join(parts[-int(options.pop("documents")) :])
        if "bytes" in options:
            text = text.encode()[: int(options.pop("bytes"))].decode(errors="ignore")
        self.text = text
        self.window = int(options.pop("window", "256"))
        self.statistics = Path(options.pop("stats")) if "stats" in options else None
        learn = {"learn": options.pop("learn").split(",")} if "learn" in options else {}
        self.settings: dict[str, Any] = {
            "window": self.window,
            "separator": self.separator,
            **learn,
        }
        for path, value in options.items():
            *outer, last = path.split(".")
            level = self.settings
            for key in outer:
                level = level.setdefault(key, {})
            level[last] = yaml.safe_load(value)
            if isinstance(level[last], str) and level[last].replace("e-", "").isdigit():
                level[last] = float(level[last])
        self.work = work
        self.original, self.tokenizer = load_for_evaluation(self.folder)

    def rows(self, bits: int, fit: str) -> list[dict[str, Any]]:
        """The archives of one width and one start of the factors, measured."""
        made = []
        before = self._path(bits, fit, "untuned")
        if not before.exists():
            changes = {"residual": {"fit": fit}}
            recipe = {
                "reallm": 1,
                "extends": RECIPES[bits],
                "defaults": changes,
                "rules": [LINEAR_ONLY],
            }
            reallm.compile(recipe, model=self.folder, output=before, device="cpu", workers=1)
        made.append(self._measured(bits, fit, "untuned", before, 0.0))
        for stage in ("block", "e2e"):
            after = self._path(bits, fit, stage)
            began = time.perf_counter()
            if not after.exists():
                self._tune(before, after, stage)
            made.append(self._measured(bits, fit, stage, after, time.perf_counter() - began))
            before = after
        return made

    def recipe_rows(self, recipe: str) -> list[dict[str, Any]]:
        """An archive of a shipped recipe as compiled and tuned end to end, measured."""
        before, after = (self._path(recipe, "none", stage) for stage in ("untuned", "e2e"))
        if not before.exists():
            needed = load_recipe(recipe).statistics == "required"
            reallm.compile(
                {"reallm": 1, "extends": recipe, "rules": [LINEAR_ONLY]},
                model=self.folder,
                output=before,
                statistics=self.statistics if needed else None,
                device="cpu",
                workers=1,
            )
        made = [self._measured(recipe, "none", "untuned", before, 0.0)]
        began = time.perf_counter()
        if not after.exists():
            self._tune(before, after, "e2e")
        return [*made, self._measured(recipe, "none", "e2e", after, time.perf_counter() - began)]

    def _tune(self, before: Path, after: Path, stage: str) -> None:
        finetune(
            before,
            model=self.folder,
            text=[self.tune],
            output=after,
            options={**self.settings, "stages": [stage]},
            into=True,
            on_event=lambda event: print(event, file=sys.stderr, flush=True),
        )

    def _path(self, bits: int | str, fit: str, stage: str) -> Path:
        facts = json.dumps(self.settings if stage != "untuned" else {}, sort_keys=True)
        key = hashlib.sha256(facts.encode()).hexdigest()[:8]
        return self.work / f"{self.name}-{bits}-{fit}-{stage}-{key}.reallm"

    def _measured(
        self, bits: int | str, fit: str, stage: str, path: Path, seconds: float
    ) -> dict[str, Any]:
        note = path.with_suffix(".json")
        if note.exists():
            kept: dict[str, Any] = json.loads(note.read_text())
            return kept
        with reallm.open(path) as archive:
            exact = float(archive.budget().totals.exact_bits)
        model, _ = load_for_evaluation(path)
        found = evaluate(
            model,
            self.tokenizer,
            self.text,
            window=self.window,
            separator=self.separator,
            reference=self.original,
        )
        row = {
            "bits": bits,
            "fit": fit,
            "stage": stage,
            "exact_bits": exact,
            "file_bytes": path.stat().st_size,
            "perplexity": found.perplexity,
            "kl": found.kl,
            "reference": found.reference_perplexity,
            "tokens": found.tokens,
            "seconds": seconds,
        }
        note.write_text(json.dumps(row))
        print(self.name, row, file=sys.stderr, flush=True)
        return row


TITLES = {"untuned": "as compiled", "block": "block-wise", "e2e": "block-wise, end to end"}


def table(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown, with the share of the gap that each closes."""
    lines = [
        *_heading(study, rows),
        "| bits | factors start as | tuned | exact bits | file bytes | perplexity | KL (nats) "
        "| gap closed | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        worst = [
            other["perplexity"]
            for other in rows
            if (other["bits"], other["fit"], other["stage"]) == (row["bits"], "svd", "untuned")
        ]
        share = "" if not worst else f"{100 * _share(row, worst[0]):.1f} %"
        lines.append(
            f"| {row['bits']} | {row['fit']} | {TITLES[row['stage']]} | {row['exact_bits']:.4f} "
            f"| {row['file_bytes']:,} | {row['perplexity']:.3f} | {row['kl']:.4f} "
            f"| {share} | {row['seconds']:.0f} |"
        )
    return [*lines, ""]


def recipes_table(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    """The rows of recipes without factors as Markdown."""
    lines = [
        *_heading(study, rows),
        "| recipe | tuned | exact bits | file bytes | perplexity | KL (nats) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        tuned = "as compiled" if row["stage"] == "untuned" else "end to end"
        lines.append(
            f"| `{row['bits']}` | {tuned} | {row['exact_bits']:.4f} | {row['file_bytes']:,} "
            f"| {row['perplexity']:.3f} | {row['kl']:.4f} |"
        )
    return [*lines, ""]


def _heading(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"## {study.name}",
        "",
        f"Original: perplexity {rows[0]['reference']:.3f} over {rows[0]['tokens']:,} predicted "
        f"tokens. Settings: `{json.dumps(study.settings)}`.",
        "",
    ]


def _share(row: dict[str, Any], worst: float) -> float:
    return float((worst - row["perplexity"]) / (worst - row["reference"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--bits", action="append", type=int, choices=sorted(RECIPES))
    parser.add_argument("--recipe", action="append", help="a shipped recipe without factors")
    parser.add_argument("--fit", action="append", choices=["svd", "zero"])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--write", type=Path, help="write the page here as well")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    page: list[str] = []
    for words in given.model:
        study = Study(words, given.work)
        rows: list[dict[str, Any]] = []
        if given.recipe:
            for recipe in given.recipe:
                rows += study.recipe_rows(recipe)
            page += recipes_table(study, rows)
            continue
        for bits in given.bits or [2, 3]:
            for fit in given.fit or ["svd", "zero"]:
                rows += study.rows(bits, fit)
        page += table(study, rows)
    text = "\n".join(page).rstrip() + "\n"
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
