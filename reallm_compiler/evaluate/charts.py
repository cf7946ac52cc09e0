"""A survey as curves by layer: spectrum, structure, and the error of each recipe.

The figures come from `pictures.py`, which alone knows matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def check_charts(folder: str | os.PathLike[str]) -> Path:
    """Make the folder of the charts, and see that nothing else has their names.

    Raises:
        OutputError: the folder cannot be made, or a file there is no picture.
        EvaluationError: matplotlib is not installed.
    """
    check_matplotlib()
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made: {error.strerror}", location=str(folder)
        ) from error
    for name in CHARTS:
        check_picture(place / name)
    return place


def draw_survey(folder: str | os.PathLike[str], survey: Survey) -> list[Path]:
    """Draw a survey: `spectrum.png`, `structure.png`, and with recipes `error.png`.

    `error.png` shows the error of each recipe by layer, for each kind of matrix (the paper's
    Figures 3 and 4, with the exact bits in the legend).

    Returns:
        The files, in this order.

    Raises:
        OutputError: the folder cannot be made, or a file there is no picture.
        EvaluationError: matplotlib is not installed.
    """
    place = check_charts(folder)
    kinds: dict[str, list[MatrixSurvey]] = {}
    for row in survey.matrices:
        kinds.setdefault(kind_of(row), []).append(row)
    drawings: list[Callable[[Axes, Sequence[MatrixSurvey]], None]]
    drawings = [_draw_spectrum, _draw_structure]
    if survey.recipes:
        drawings.append(_draw_errors)
    made = []
    for file, draw in zip(CHARTS, drawings, strict=False):
        path = place / file
        columns = min(3, len(kinds))
        lines = -(-len(kinds) // columns)
        figure = new_figure(5.5 * columns, 4 * lines)
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis in axes[len(kinds) :]:
            axis.set_visible(False)
        for axis, (kind, rows) in zip(axes, kinds.items(), strict=False):
            axis.set_title(kind, fontsize=9)
            draw(axis, rows)
        save_figure(figure, path)
        made.append(path)
    return made


def kind_of(row: MatrixSurvey) -> str:
    """The matrix's name with `*` for its layer's number."""
    number = str(row.layer)
    return ".".join("*" if part == number else part for part in row.name.split("."))


def _draw_spectrum(axis: Axes, rows: Sequence[MatrixSurvey]) -> None:
    for row in rows:
        values = row.spectrum.values
        if values and values[0] > 0:
            places = [(place + 1) / len(values) for place in range(len(values))]
            depth = (row.layer or 0) / max(1, *(one.layer or 0 for one in rows))
            axis.plot(
                places,
                [value / row.norm for value in values],
                color=(0.1 + 0.8 * depth, 0.3, 0.9 - 0.8 * depth),  # blue to red
                linewidth=0.8,
                label=f"layer {row.layer}" if row.layer is not None else None,
            )
    axis.set_yscale("log")
    axis.set_xlabel("place among the singular values / their number")
    axis.set_ylabel("singular value / norm")
    _legend(axis)


def _draw_structure(axis: Axes, rows: Sequence[MatrixSurvey]) -> None:
    places = _places(rows)
    values = {
        "rows": [row.rows for row in rows],
        "columns": [row.columns for row in rows],
        "magnitudes of rows": [row.magnitude_rows for row in rows],
        "magnitudes of columns": [row.magnitude_columns for row in rows],
    }
    for place, (label, found) in enumerate(values.items()):
        axis.plot(
            places,
            [one.ordered for one in found],
            marker="os"[place % 2],
            linestyle="-" if place < 2 else ":",
            label=label,
        )
    # Not less than this, so that what is small looks small.
    axis.set_ylim(min(-0.1, axis.get_ylim()[0]), max(1.0, axis.get_ylim()[1]))
    axis.axhline(0, color="0.6", linewidth=0.8)
    label_whole(axis, _places_label(rows))
    axis.set_ylabel("what the order adds (1 smooth, 0 noise)")
    _legend(axis)


def _draw_errors(axis: Axes, rows: Sequence[MatrixSurvey]) -> None:
    for recipe in dict.fromkeys(one.recipe for row in rows for one in row.measures):
        found = [
            (place, one)
            for place, row in zip(_places(rows), rows, strict=True)
            for one in row.measures
            if one.recipe == recipe
        ]
        bits = sorted({round(float(one.exact_bits), 3) for _, one in found})
        told = f"{bits[0]:g}" if len(bits) == 1 else f"{bits[0]:g} to {bits[-1]:g}"
        axis.plot(
            [place for place, _ in found],
            [one.relative_error for _, one in found],
            marker="o",
            label=f"{recipe}, {told} bits",
        )
    label_whole(axis, _places_label(rows))
    axis.set_ylabel("relative error")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # room for the legend
    _legend(axis)


def _places_label(rows: Sequence[MatrixSurvey]) -> str:
    """What `_places` counts."""
    return "layer" if _places(rows) == [row.layer for row in rows] else "matrix"


def _places(rows: Sequence[MatrixSurvey]) -> list[int]:
    """Numbers of the layers, or of the rows where a matrix is in none or two are in one."""
    layers = [row.layer for row in rows if row.layer is not None]
    return layers if len(set(layers)) == len(rows) else list(range(len(rows)))


def _legend(axis: Axes) -> None:
    if 0 < len(axis.get_legend_handles_labels()[1]) <= 12:
        axis.legend(fontsize=7)
