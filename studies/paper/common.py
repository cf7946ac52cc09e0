"""What the studies of the paper's tables share: their options, one archive, its tuning, the page.

The paper is ReALLM (arXiv 2405.13155). Each script takes the same options:

    --model FOLDER    checkpoint (default: the demo model)
    --text FILE       evaluated on this (default: the demo's held-out text), twice for two columns
    --stats FILE      what `reallm calibrate` measured (default: measured on the texts of --tune)
    --tune FILE       tuned on this, never evaluated (default: generated, demo/generate.py --seed 3)
    --window N        tokens of a window (default 256)
    --rank R          what stands for rank 64 of 4096 (default 1/64 of min(p, q))
    --long            longer tuning (default: seconds to minutes on one core)
    --set PATH=VALUE  a setting of the tuning run, such as e2e.steps=2000, or fit.epochs=1 of the
                      recipes by which blocks learn while they are coded
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import weakref
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import reallm_compiler as reallm
from reallm_compiler.recipe import load_recipe

DEMO = Path(__file__).resolve().parents[2] / "demo"
SHORT = {
    "held_out": 16,
    "block": {"lr": 1e-3, "batch": 16, "sequences": 64, "epochs": 2, "patience": 2},
    "e2e": {"lr": 1e-3, "batch": 8, "accumulation": 1, "steps": 40, "checks": 2},
}
FIT = {"samples": 64, "epochs": 20}
"""How much blocks learn while they are coded; with --long as the recipes say."""

LONG = {
    "held_out": 32,
    "block": {"lr": 1e-3, "batch": 16, "sequences": 512, "epochs": 10, "patience": 3},
    "e2e": {"lr": 1e-3, "batch": 8, "accumulation": 1, "steps": 600, "checks": 10},
}


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all studies share."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--tune", type=Path, action="append")
    parser.add_argument("--stats", type=Path)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rank", type=Fraction, default=Fraction(1, 64))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    return parser


def table(header: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """Print a Markdown table, and below it what differs from the paper."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\nWhat differs from the paper:\n\n" + "\n".join(f"- {note}" for note in notes))


class Study:
    """One model: its archives, tuned or not, and their perplexities."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.texts = [path.read_text("utf-8") for path in given.text or [DEMO / "heldout.txt"]]
        self.folder = Path(tempfile.mkdtemp(prefix="study-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.settings = {"window": given.window, **(LONG if given.long else SHORT)}
        self.settings["fit"] = {"window": given.window, **({} if given.long else FIT)}
        for word in given.set:
            path, value = word.split("=", 1)
            stage, _, name = path.rpartition(".")
            level = {**self.settings.get(stage, {})} if stage else self.settings
            level[name] = yaml.safe_load(value)
            if stage:
                self.settings[stage] = level

    @cached_property
    def tune_files(self) -> list[Path]:
        """Texts to tune on; without any the demo's generator writes one."""
        if self.given.tune:
            return list(self.given.tune)
        made = self.folder / "tune.txt"
        command = [sys.executable, DEMO / "generate.py", "--seed", "3", "--bytes", "1000000"]
        subprocess.run([*map(str, command), "-o", str(made)], check=True)
        return [made]

    def compiled(self, name: str, recipe: dict[str, Any]) -> Path:
        """An archive of the model by `recipe`, made once per name."""
        path = self.folder / f"{name}.reallm"
        if not path.exists():
            papers = {**recipe, "rules": [*recipe.get("rules", []), LINEAR_ONLY]}
            loaded = load_recipe(papers)
            if loaded.fit is not None:
                papers["fit"] = {**loaded.fit.model_dump(mode="json"), **self.settings["fit"]}
            reallm.compile(
                papers,
                model=self.given.model,
                output=path,
                statistics=self.statistics if loaded.statistics == "required" else None,
                text=self.tune_files if loaded.fit is not None else None,
                device="cpu",
                workers=1,
            )
        return path

    @cached_property
    def statistics(self) -> Path:
        """Statistics of the model for the recipes that need them."""
        if self.given.stats:
            return Path(self.given.stats)
        made = self.folder / "model.stats"
        reallm.calibrate(
            self.given.model,
            text=self.tune_files,
            output=made,
            window=self.given.window,
            device="cpu",
            workers=1,
        )
        return made

    def tuned(self, archive: Path, stage: str) -> Path:
        """`archive` after one stage of tuning, `block` or `e2e`, made once."""
        path = archive.with_name(f"{archive.stem}-{stage}.reallm")
        if not path.exists():
            options = {name: value for name, value in self.settings.items() if name != "fit"}
            reallm.tune(
                archive,
                model=self.given.model,
                text=self.tune_files,
                output=path,
                options={**options, "stages": [stage]},
                into=True,
                on_event=lambda event: print(event, file=sys.stderr, flush=True),
            )
        return path

    def perplexities(self, model: Path) -> str:
        """Perplexity of a folder or an archive on each text."""
        from reallm_compiler.evaluate import evaluate, load_for_evaluation

        loaded, tokenizer = load_for_evaluation(model)
        found = [evaluate(loaded, tokenizer, text, window=self.given.window) for text in self.texts]
        return " / ".join(f"{one.perplexity:.3f}" for one in found)

    def notes(self) -> list[str]:
        """What always differs: model, text and amount of tuning."""
        weights = reallm.plan({"reallm": 1}, model=self.given.model).budget().totals.numel
        size = sum(path.stat().st_size for path in self.tune_files)
        settings = json.dumps(self.settings)
        return [
            f"model: {weights:,} weights in linear layers, not the paper's LLaMA-2 of 7 or 13 "
            "billion; small models lose more at equal bits",
            f"text: windows of {self.given.window} tokens of the given text(s), not 2,048 of C4 "
            "and WikiText-2, so that only the order of rows compares",
            f"tuning: {size:,} bytes of text, `{settings}`; "
            "the paper: a part of C4, block-wise 1e-5 x 32, end to end 2e-5 x 1",
        ]


LINEAR_ONLY = {"role": ["embedding", "head"], "keep": "source", "optional": True}
"""The last rule of all recipes here: in the paper embeddings and heads stay as they are."""


def exact_bits(archive: Path) -> str:
    """Exact bits per coded weight, all in."""
    with reallm.open(archive) as opened:
        return f"{float(opened.budget().totals.exact_bits):.4f}"


def reallm_recipe(bits: int, dim: int, rank: Fraction) -> dict[str, Any]:
    """ReALLM as in the paper: shipped recipe, with this width, dimension and rank."""
    changes = {"residual": {"rank": str(rank)}, "quantizer": {"bits": bits, "dim": dim}}
    return {"reallm": 1, "extends": "paper-2bit", "defaults": changes}
