"""A survey as curves by layer: spectrum, structure, and the error of each recipe.

Each kind of matrix, such as `model.layers.*.mlp.up_proj`, has a panel of its own. The experts of
a layer share one: what is drawn is their median, and their range around it. The figures come
from `pictures.py`, which alone knows matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from reallm_compiler.checkpoint import matrix_kind
from reallm_compiler.errors import OutputError
from reallm_compiler.evaluate.pictures import (
    check_matplotlib,
    check_picture,
    label_whole,
    new_figure,
    save_figure,
)
from reallm_compiler.evaluate.survey_report import MatrixSurvey, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CHARTS = ("spectrum.png", "structure.png", "error.png")
"""Files of `draw_survey`; the last one with recipes only."""

PANELS = 24
"""Most kinds of matrices that are drawn, so that a picture stays one that can be looked at."""

Layers = dict[int | None, list[MatrixSurvey]]
"""The matrices of one kind by their layer's number; under None those that are in no layer."""


def check_charts(folder: str | os.PathLike[str]) -> Path:
    """Make the folder of the charts, and see that nothing else has their names.

    Raises:
        OutputError: the folder cannot be made, or a file there is no picture.
        EvaluationError: matplotlib is not installed.
    """
    check_matplotlib()
    directory = Path(folder)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made: {error.strerror}", location=str(folder)
        ) from error
    for name in CHARTS:
        check_picture(directory / name)
    return directory


def draw_survey(folder: str | os.PathLike[str], survey: Survey) -> list[Path]:
    """Draw a survey: `spectrum.png`, `structure.png`, and with recipes `error.png`.

    `error.png` shows the error of each recipe by layer, for each kind of matrix (the paper's
    Figures 3 and 4, with the exact bits in the legend). Of more than `PANELS` kinds those with
    the most weights are drawn, and the picture says so.

    Returns:
        The files, in this order.

    Raises:
        OutputError: the folder cannot be made, or a file there is no picture.
        EvaluationError: matplotlib is not installed.
    """
    directory = check_charts(folder)
    kinds = panels(survey.matrices)
    shown = sorted(kinds, key=lambda kind: _numel(kinds[kind]), reverse=True)[:PANELS]
    drawn = {kind: layers for kind, layers in kinds.items() if kind in shown}
    drawings: list[Callable[[Axes, Layers], None]] = [_draw_spectrum, _draw_structure]
    if survey.recipes:
        drawings.append(_draw_errors)
    made = []
    for file, draw in zip(CHARTS, drawings, strict=False):
        path = directory / file
        columns = min(3, len(drawn))
        lines = -(-len(drawn) // columns)
        figure = new_figure(5.5 * columns, 4 * lines)
        if len(drawn) < len(kinds):
            figure.suptitle(f"the {len(drawn)} of {len(kinds)} kinds of matrices with most weights")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis in axes[len(drawn) :]:
            axis.set_visible(False)
        for axis, (kind, layers) in zip(axes, drawn.items(), strict=False):
            most = max(map(len, layers.values()))
            axis.set_title(kind + (f"\n{most} a layer: median and range" if most > 1 else ""))
            axis.title.set_fontsize(9)
            draw(axis, layers)
        save_figure(figure, path)
        made.append(path)
    return made


def panels(matrices: Iterable[MatrixSurvey]) -> dict[str, Layers]:
    """The matrices by their kind, and within a kind by their layer, in ascending order."""
    kinds: dict[str, Layers] = {}
    for row in matrices:
        kinds.setdefault(matrix_kind(row.name), {}).setdefault(row.layer, []).append(row)
    return {
        kind: {number: layers[number] for number in sorted(layers, key=lambda one: one or 0)}
        for kind, layers in kinds.items()
    }


def _numel(layers: Layers) -> int:
    return sum(row.shape[0] * row.shape[1] for rows in layers.values() for row in rows)


def _draw_spectrum(axis: Axes, layers: Layers) -> None:
    last = max(1, *(number or 0 for number in layers))
    for number, rows in layers.items():
        curves = [
            [value / row.norm for value in row.spectrum.values]
            for row in rows
            if row.spectrum.values and row.spectrum.values[0] > 0
        ]
        if not curves:
            continue
        points = list(zip(*curves, strict=False))  # of each index, the value of each matrix
        fractions = [(index + 1) / len(points) for index in range(len(points))]
        depth = (number or 0) / last
        colour = (0.1 + 0.8 * depth, 0.3, 0.9 - 0.8 * depth)  # blue to red
        label = f"layer {number}" if number is not None else None
        axis.plot(
            fractions, [median(one) for one in points], color=colour, linewidth=0.8, label=label
        )
        _range(axis, fractions, points, colour)
    axis.set_yscale("log")
    axis.set_xlabel("index of the singular value / their number")
    axis.set_ylabel("singular value / norm")
    _legend(axis)


def _draw_structure(axis: Axes, layers: Layers) -> None:
    series: dict[str, Callable[[MatrixSurvey], float]] = {
        "rows": lambda row: row.rows.ordered,
        "columns": lambda row: row.columns.ordered,
        "magnitudes of rows": lambda row: row.magnitude_rows.ordered,
        "magnitudes of columns": lambda row: row.magnitude_columns.ordered,
    }
    for index, (label, value) in enumerate(series.items()):
        points = {number or 0: [value(row) for row in rows] for number, rows in layers.items()}
        style = {"marker": "os"[index % 2], "linestyle": "-" if index < 2 else ":"}
        _draw_points(axis, points, label, **style)
    # Not less than this, so that what is small looks small.
    axis.set_ylim(min(-0.1, axis.get_ylim()[0]), max(1.0, axis.get_ylim()[1]))
    axis.axhline(0, color="0.6", linewidth=0.8)
    label_whole(axis, _axis_label(layers))
    axis.set_ylabel("what the order adds (1 smooth, 0 noise)")
    _legend(axis)


def _draw_errors(axis: Axes, layers: Layers) -> None:
    measures = [
        (number or 0, one)
        for number, rows in layers.items()
        for row in rows
        for one in row.measures
    ]
    for recipe in dict.fromkeys(one.recipe for _, one in measures):
        points: dict[int, list[float]] = {}
        bits = set()
        for number, one in measures:
            if one.recipe == recipe:
                points.setdefault(number, []).append(one.relative_error)
                bits.add(round(float(one.exact_bits), 3))
        shown = f"{min(bits):g}" if len(bits) == 1 else f"{min(bits):g} to {max(bits):g}"
        _draw_points(axis, points, f"{recipe}, {shown} bits", marker="o")
    label_whole(axis, _axis_label(layers))
    axis.set_ylabel("relative error")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # space for the legend
    _legend(axis)


def _draw_points(axis: Axes, points: dict[int, list[float]], label: str, **style: str) -> None:
    """A curve through the median of each layer's values, and their range."""
    medians = [median(values) for values in points.values()]
    (line,) = axis.plot(list(points), medians, label=label, **style)  # type: ignore[arg-type]
    _range(axis, list(points), list(points.values()), line.get_color())


def _range(
    axis: Axes,
    fractions: Sequence[float],
    points: Sequence[Sequence[float]],
    colour: object,
) -> None:
    """Shade from the least to the largest value at each fraction, where there are several."""
    if any(len(values) > 1 for values in points):
        low, high = [min(values) for values in points], [max(values) for values in points]
        if len(fractions) == 1:  # a shade without width would not be seen
            axis.vlines(fractions, low, high, color=colour)
        axis.fill_between(fractions, low, high, color=colour, alpha=0.2, linewidth=0)


def _axis_label(layers: Layers) -> str:
    return "matrix" if set(layers) == {None} else "layer"


def _legend(axis: Axes) -> None:
    if 0 < len(axis.get_legend_handles_labels()[1]) <= 12:
        axis.legend(fontsize=7)
