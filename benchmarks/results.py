"""Every shipped recipe on given models: size, quality and compile time, as one Markdown page.

    python benchmarks/results.py --write docs/results.md \\
        --model demo demo/model demo/heldout.txt window=256 \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 bytes=200000

Each `--model` takes a name, a checkpoint folder, a text, and options:

    window=N       tokens of a window (default: the protocol's own)
    separator=S    documents of the text are separated by S and stand by themselves
    drop=N         leave out the last N documents, such as one that is cut
    documents=N    only the last N documents (of the rest)
    bytes=N        only the first N bytes of the text

Compile times are seconds of wall time on this machine in this run; all else is exact.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from pages import write_part

import reallm_compiler as reallm
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from reallm_compiler.recipe import list_shipped

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

    @classmethod
    def parse(cls, words: list[str]) -> Subject:
        name, folder, text_path, *rest = words
        options = dict(word.split("=", 1) for word in rest)
        unknown = set(options) - {"window", "separator", "drop", "documents", "bytes"}
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
        return cls(name, Path(folder), text, window, separator)


def measure(subject: Subject, recipes: list[str], workers: int) -> list[str]:
    """Rows of the table of one model, the original first."""
    original, tokenizer = load_for_evaluation(subject.folder)
    options = {"window": subject.window, "separator": subject.separator}
    base = evaluate(original, tokenizer, subject.text, **options)
    plain = reallm.plan({"reallm": 1}, model=subject.folder).budget().totals
    bits = f"{float(plain.exact_bits):g} | {float(plain.paper_bits):g}"
    rows = [
        f"| (original) | {bits} | {_folder_bytes(subject.folder):,} | {base.perplexity:.3f} "
        f"| {base.bits_per_byte:.4f} | 0 | |"
    ]
    for recipe in recipes:
        training = reallm.plan(recipe, model=subject.folder).budget().totals.training_operations
        if training > MOST_TRAINING:
            why = f"not run: {training:.1e} operations of training"
            rows.append(f"| `{recipe}` | {why} | | | | | | |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.reallm"
            began = time.perf_counter()
            report = reallm.compile(
                recipe, model=subject.folder, output=path, device="cpu", workers=workers
            )
            seconds = time.perf_counter() - began
            totals = report.budget.totals
            stored = path.stat().st_size
            if stored != totals.file_bytes:
                raise SystemExit(f"{recipe}: {stored} bytes stored, {totals.file_bytes} planned")
            model, _ = load_for_evaluation(path)
            found = evaluate(model, tokenizer, subject.text, reference=original, **options)
        rows.append(
            f"| `{recipe}` | {float(totals.exact_bits):.4f} | {float(totals.paper_bits):.4f} "
            f"| {stored:,} | {found.perplexity:.3f} | {found.bits_per_byte:.4f} | {found.kl:.4f} "
            f"| {seconds:.1f} |"
        )
        print(subject.name, rows[-1], file=sys.stderr, flush=True)
    return [
        f"## {subject.name}",
        "",
        f"{totals.weights:,} weights in {len(report.budget.matrices)} coded matrices; "
        f"{base.tokens:,} predicted tokens, "
        + (
            f"documents of at most {base.window} tokens."
            if subject.separator
            else f"windows of {base.window}."
        ),
        "",
        "| recipe | exact bits | paper bits | file bytes | perplexity | bits per byte | KL (nats) "
        "| compile (s) |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _folder_bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--recipe", action="append", help="only these (default: all shipped)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", type=Path, help="put it into this page as well")
    given = parser.parse_args()
    recipes = given.recipe or list_shipped()
    page = [
        "# Results",
        "",
        "Printed by `python benchmarks/results.py` (its first lines say how to call it). Bits are "
        "per weight of the coded matrices; file bytes count everything. KL is the mean over "
        "predicted tokens of KL(original || compressed). Smaller is better everywhere.",
        "",
        f"torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, "
        f"{given.workers} worker(s).",
        "",
    ]
    for words in given.model:
        page += measure(Subject.parse(words), recipes, given.workers)
    text = "\n".join(page).rstrip() + "\n"
    print(text)
    if given.write:
        write_part(given.write, "results", text)


if __name__ == "__main__":
    main()
