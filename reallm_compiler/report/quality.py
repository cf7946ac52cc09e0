"""What the archives of a report predict: perplexity on a text, and distance to the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from reallm_compiler.evaluate import (
    Evaluation,
    check_same_tokenizer,
    evaluate,
    load_for_evaluation,
    read_text,
)
from reallm_compiler.numbers import grouped
from reallm_compiler.report.elements import Element, element, join, number, table
from reallm_compiler.report.files import AdapterFile, ModelFile, ReportFile
from reallm_compiler.report.steps import OnStep
from reallm_compiler.runtime.mapped import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How models are run to be measured; the arguments of `load_for_evaluation` and `evaluate`."""

    mode: Mode = "dense"
    device: str = "cpu"
    window: int | None = None
    decoder: str | os.PathLike[str] | None = None
    allow_cost: bool = False


def measure(
    files: Sequence[ReportFile],
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None,
    running: Running,
    on_step: OnStep,
) -> dict[str, Evaluation]:
    """Measure each file on a text, by its label; an adapter over its base, if that is among them.

    Raises:
        EvaluationError: the text or the window is unfit, or the tokenizers differ.
        SourceError, FormatError: a model cannot be read.
    """
    content = read_text(path)
    bases = {file.digest: file for file in files if isinstance(file, ModelFile)}
    other, other_tokenizer = None, None
    if reference is not None:
        other, other_tokenizer = load_for_evaluation(
            reference,
            device=running.device,
            progress=partial(on_step, "load the reference", "tensors"),
        )
    found = {}
    for file in files:
        base = bases.get(file.document.base) if isinstance(file, AdapterFile) else file
        if base is None:
            continue
        model, tokenizer = load_for_evaluation(
            base.path,
            mode=running.mode,
            device=running.device,
            adapter=file.path if isinstance(file, AdapterFile) else None,
            decoder=running.decoder,
            allow_cost=running.allow_cost,
            progress=partial(on_step, f"load {file.label}", "tensors"),
        )
        if other_tokenizer is not None:
            check_same_tokenizer(tokenizer, other_tokenizer, content)
        found[file.label] = evaluate(
            model,
            tokenizer,
            content,
            window=running.window,
            reference=other,
            reference_tokenizer=other_tokenizer,
            progress=partial(on_step, f"measure {file.label}", "windows"),
        )
        del model
    return found


def quality(files: Sequence[ReportFile], found: Mapping[str, Evaluation]) -> Element:
    """The measurements side by side."""
    rows: list[list[str]] = []
    for file in files:
        one = found.get(file.label)
        if one is None:
            continue
        agreement = one.top1_agreement
        rows.append(
            [
                file.label,
                number(one.perplexity, f"{one.perplexity:.4f}"),
                number(one.kl, f"{one.kl:.6f}" if one.kl is not None else "-"),
                number(agreement, f"{100 * agreement:.2f} %" if agreement is not None else "-"),
                number(one.bits_per_byte, f"{one.bits_per_byte:.4f}"),
            ]
        )
    if not rows:
        return element(
            "p", "No model to measure: give the base of each adapter too.", class_="note"
        )
    first = next(iter(found.values()))
    if first.reference_perplexity is not None:
        shown = f"{first.reference_perplexity:.4f}"
        rows.append(["reference", number(first.reference_perplexity, shown), "", "", ""])
    note = element(
        "p",
        f"{grouped(first.tokens)} predicted tokens in {grouped(first.windows)} windows of "
        f"{first.window} tokens. KL is in nats for each token, from the reference.",
        class_="note",
    )
    columns = ["<file", "perplexity", "KL", "same top token", "bits per byte"]
    return join([table(columns, rows, caption="quality on the text"), note])
