"""What each layer has: bits and error as a heat map, errors as curves, and all matrices in a table.

The curves are those of the paper's Figures 3 and 4: the error by block for one kind of matrix, a
curve for each archive. Of a layer with several matrices of one kind, such as experts, the median
is drawn and their range around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from reallm_compiler.numbers import error_text
from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.report.drawing import Axis, Series, chart, legend, side_by_side
from reallm_compiler.report.elements import Element, element, join, number, table
from reallm_compiler.report.files import ModelFile
from reallm_compiler.report.overview import bits, count, error
from reallm_compiler.units import bits_per_weight

PANELS = 24
"""Most kinds of matrices that are drawn; those with the most weights."""

STRONGEST = 0.75
"""Opacity of the largest value's colour, so that the number on it stays readable."""

Norms = Mapping[tuple[str, str], float]
"""Frobenius norm of the original of each (label of a file, matrix)."""

ValueOf = Callable[[Sequence[MatrixBudget]], float]
"""The value of the matrices of one kind in one layer."""


def shown_kinds(models: Sequence[ModelFile]) -> list[str]:
    """The kinds that are drawn, in storage order, and no more than `PANELS`."""
    weights: dict[str, int] = {}
    for model in models:
        for kind, layers in model.by_kind_and_layer.items():
            size = sum(row.numel for rows in layers.values() for row in rows)
            weights[kind] = max(size, weights.get(kind, 0))
    largest = sorted(weights, key=lambda kind: -weights[kind])[:PANELS]
    return [kind for kind in weights if kind in largest]


def heat_maps(models: Sequence[ModelFile]) -> Element:
    """For each file a table of layers and kinds, coloured by bits, and one by error.

    Colours begin at 0, and all files have the same ones.
    """
    coded = [model for model in models if model.budget.matrices]
    kinds = shown_kinds(coded)
    measures: tuple[tuple[str, Callable[[ModelFile], ValueOf], Callable[[float], str]], ...] = (
        ("exact bits per weight", lambda model: _bits_of, "{:.3f}".format),
        ("relative error", _error_of, error_text),
    )
    parts = []
    for what, value_of, shown in measures:
        found = [(model, _values(model, kinds, value_of(model))) for model in coded]
        # A table of embeddings with many bits would leave the layers without colour.
        inside = [
            value
            for _, values in found
            for (layer, _), value in values.items()
            if layer is not None
        ] or [value for _, values in found for value in values.values()]
        for model, values in found:
            parts.append(_heat(f"{model.label}: {what}", values, max(inside), shown))
    return join(parts)


def _bits_of(rows: Sequence[MatrixBudget]) -> float:
    size, weights = sum(row.nbytes for row in rows), sum(row.numel for row in rows)
    return float(bits_per_weight(size, weights))


def _error_of(model: ModelFile) -> ValueOf:
    return lambda rows: median(model.errors[row.name] for row in rows)


def _values(
    model: ModelFile, kinds: Sequence[str], value_of: ValueOf
) -> dict[tuple[int | None, str], float]:
    found = model.by_kind_and_layer
    return {
        (layer, kind): value_of(rows)
        for kind in kinds
        for layer, rows in found.get(kind, {}).items()
    }


def _heat(
    caption: str,
    values: Mapping[tuple[int | None, str], float],
    largest: float,
    shown: Callable[[float], str],
) -> Element:
    layers = sorted({layer for layer, _ in values}, key=lambda one: (one is None, one or 0))
    kinds = list(dict.fromkeys(kind for _, kind in values))
    rows = []
    for layer in layers:
        row: list[str] = ["no layer" if layer is None else f"layer {layer}"]
        for kind in kinds:
            value = values.get((layer, kind))
            if value is None:
                row.append("")
                continue
            strength = STRONGEST * min(1.0, value / largest) if largest else 0.0
            style = f"background:rgb(var(--heat)/{strength:.3f})"
            row.append(element("td", number(value, shown(value)), style=style))
        rows.append(row)
    columns = ["<layer", *(kind.rpartition("*.")[2].replace(".", ".\n") for kind in kinds)]
    return table(columns, rows, caption=caption, class_="heat")


def errors_by_block(models: Sequence[ModelFile], norms: Norms) -> Element:
    """The errors by block for each kind, a curve for each file (Figures 3 and 4 of the paper)."""
    models = [model for model in models if model.budget.matrices]
    drawn = _panels(models, "relative error", lambda model, name: model.errors[name])
    parts = [legend([model.label for model in models]), side_by_side(drawn)]
    if norms:
        absolute = _panels(
            models,
            "norm of W - W^",
            lambda model, name: model.errors[name] * norms[model.label, name],
        )
        parts.append(element("h3", "Errors as Frobenius norms, as the paper draws them"))
        parts.append(side_by_side(absolute))
    return join(parts)


def _panels(
    models: Sequence[ModelFile], label: str, value_of: Callable[[ModelFile, str], float]
) -> list[Element]:
    drawings = []
    x, y = Axis(label="layer", whole=True), Axis(label=label, zero=True)
    for kind in shown_kinds(models):
        if all(set(model.by_kind_and_layer.get(kind, {})) <= {None} for model in models):
            continue  # in no block
        series = []
        for index, model in enumerate(models):
            layers = model.by_kind_and_layer.get(kind, {})
            found = {
                layer or 0: [value_of(model, row.name) for row in rows]
                for layer, rows in layers.items()
            }
            several = any(len(values) > 1 for values in found.values())
            series.append(
                Series(
                    label=model.label,
                    points=[(layer, median(values)) for layer, values in found.items()],
                    low=[min(values) for values in found.values()] if several else (),
                    high=[max(values) for values in found.values()] if several else (),
                    number=index,
                )
            )
        drawings.append(chart(kind, series, x, y))
    return drawings


def all_matrices(models: Sequence[ModelFile]) -> Element:
    """A row for each matrix of each file; columns can be sorted where scripts run."""
    columns = ["<matrix", "shape", "paper bits", "exact bits", "bytes", "error"]
    parts = []
    for model in models:
        rows = [
            [
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                bits(row.paper_bits),
                bits(row.exact_bits),
                count(row.nbytes),
                error(model.errors[row.name]),
            ]
            for row in model.budget.matrices
        ]
        if rows:
            made = table(columns, rows, caption=f"{model.label}, storage order", class_="sorted")
            shown = f"{model.label}: {len(rows):,} matrices"
            parts.append(element("details", element("summary", shown), made))
    return join(parts)
