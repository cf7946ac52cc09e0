"""The first parts of a report: all files at a glance, and where their bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reallm_compiler.numbers import bits_text, error_text, grouped, share_text, size_text
from reallm_compiler.report.drawing import COLOURS
from reallm_compiler.report.elements import Element, element, join, number, table
from reallm_compiler.report.files import AdapterFile, ModelFile, Part, ReportFile


def bits(rate: Fraction) -> Element:
    """Bits per weight, as shown and as a number."""
    return number(float(rate), bits_text(rate))


def count(value: int) -> Element:
    """An integer with its thousands apart."""
    return number(value, grouped(value))


def error(value: float | None) -> Element:
    """A relative error."""
    return number(value, error_text(value))


def summary(files: Sequence[ReportFile]) -> Element:
    """A row for each file."""
    columns = [
        "<file", "bytes", "exact bits", "paper bits", "model bits", "times smaller", "mean error",
        "max error", "<digest",
    ]  # fmt: skip
    models = [file for file in files if isinstance(file, ModelFile)]
    adapters = [file for file in files if isinstance(file, AdapterFile)]
    parts = []
    if models:
        rows = []
        for model in models:
            totals = model.budget.totals
            rows.append(
                [
                    model.label,
                    count(totals.file_bytes),
                    bits(totals.exact_bits),
                    bits(totals.paper_bits),
                    bits(totals.model_bits),
                    number(float(totals.ratio), f"{float(totals.ratio):.2f}"),
                    error(model.mean_error),
                    error(max(model.errors.values(), default=None)),
                    model.digest.hex()[:16],
                ]
            )
        parts.append(table(columns, rows, caption="models"))
        parts.append(
            element(
                "p",
                "Exact bits are all bits stored for the coded matrices over their weights; paper "
                "bits count as the paper's tables do; model bits are over all numbers of the "
                "model, kept ones included. An error is the norm of W - W^ over the norm of W, "
                "measured when a matrix was coded.",
                class_="note",
            )
        )
    if adapters:
        bases = {model.digest: model.label for model in models}
        rows = [
            [
                adapter.label,
                count(adapter.file_bytes),
                count(len(adapter.document.matrices)),
                count(len(adapter.document.replaced)),
                bases.get(adapter.document.base, adapter.document.base.hex()[:16]),
            ]
            for adapter in adapters
        ]
        columns = ["<file", "bytes", "matrices", "replaced sections", "<tuned from"]
        parts.append(table(columns, rows, caption="adapters"))
    return join(parts)


def bytes_of(models: Sequence[ModelFile]) -> Element:
    """Where the bytes of each file are: by part of the file, by role and by kind of matrix."""
    names = list(dict.fromkeys(name for model in models for name, _ in model.parts()))
    parts = [element("h3", "By part of the file")]
    for model in models:
        parts.append(element("p", f"{model.label}, {size_text(model.opened.stored.file)}"))
        parts.append(_bar(model.parts(), names))
    swatches = [
        element("span", class_=f"swatch f{index % COLOURS}", aria_hidden="true")
        for index in range(len(names))
    ]
    shown = [(name, join([swatch, name])) for name, swatch in zip(names, swatches, strict=True)]
    parts.append(_side_by_side("bytes by part", shown, [model.parts() for model in models], models))
    roles = [model.roles() for model in models]
    known = dict.fromkeys(name for found in roles for name, _ in found)
    parts.append(element("h3", "By role of the tensor"))
    parts.append(_side_by_side("bytes by role", [(name, name) for name in known], roles, models))
    for model in models:
        parts.append(element("h3", f"By kind of matrix: {model.label}"))
        parts.append(_kinds(model))
    return join(parts)


def _bar(parts: Sequence[Part], names: Sequence[str]) -> Element:
    whole = sum(size for _, size in parts)
    pieces = [
        element(
            "span",
            class_=f"f{names.index(name) % COLOURS}",
            style=f"width:{100 * size / whole:.3f}%",
        )
        for name, size in parts
        if size
    ]
    return element("div", *pieces, class_="bar", aria_hidden="true")


def _side_by_side(
    caption: str,
    names: Sequence[tuple[str, str]],
    parts: Sequence[Sequence[Part]],
    models: Sequence[ModelFile],
) -> Element:
    """A row for each part, by its name and as it is shown; two columns for each file."""
    found = [dict(sizes) for sizes in parts]
    files = [model.opened.stored.file for model in models]
    rows = []
    for name, shown in names:
        row: list[str] = [shown]
        for whole, sizes in zip(files, found, strict=True):
            row += [count(sizes.get(name, 0)), share_text(sizes.get(name, 0), whole)]
        rows.append(row)
    total: list[str] = ["all"]
    for whole, sizes in zip(files, found, strict=True):
        total += [count(sum(sizes.values())), share_text(sum(sizes.values()), whole)]
    columns = ["<part"]
    for model in models:
        columns += [model.label, "share"]
    return table(columns, rows, total=total, caption=caption)


def _kinds(model: ModelFile) -> Element:
    whole = model.opened.stored.file
    rows: list[list[str]] = []
    for row in model.rows:
        errors = [model.errors[one.name] for one in row.matrices]
        rows.append(
            [
                row.name,
                count(row.count),
                f"{row.shape[0]} x {row.shape[1]}",
                bits(row.paper_bits),
                bits(row.exact_bits),
                count(row.nbytes),
                share_text(row.nbytes, whole),
                error(sum(errors) / len(errors)),
                error(max(errors)),
            ]
        )
    rows += [
        [name, "kept", "", "", "", count(size), share_text(size, whole), "", ""]
        for name, size in model.kept()
    ]
    columns = [
        "<matrices", "count", "shape", "paper bits", "exact bits", "bytes", "share", "mean error",
        "max error",
    ]  # fmt: skip
    return table(columns, rows, caption="coded matrices, then kept tensors")
