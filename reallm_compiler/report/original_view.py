"""Spectra and distributions, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reallm_compiler.report.drawing import Axis, Series, chart, legend, side_by_side
from reallm_compiler.report.elements import Element, element, join
from reallm_compiler.report.original import Curves, Originals


def spectra(labels: Sequence[str], found: Originals) -> Element:
    """Singular values of the original, of the errors and of the low-rank residuals."""
    names = ["original", *(f"error of {label}" for label in labels)]
    residuals = [
        label
        for label in labels
        if any(label in files and files[label].residual_spectrum for files in found.curves.values())
    ]
    names += [f"residual of {label}" for label in residuals]
    drawn = []
    for files in found.curves.values():
        series = [Series(label="original", points=next(iter(files.values())).weight_spectrum)]
        for index, label in enumerate(labels):
            if label in files:
                points = files[label].error_spectrum
                series.append(Series(label=names[index + 1], points=points, number=index + 1))
        for index, label in enumerate(residuals):
            if label in files:
                number = 1 + len(labels) + index
                points = files[label].residual_spectrum
                series.append(Series(label=names[number], points=points, number=number))
        drawn.append(
            chart(
                _one_name(files.values()),
                series,
                Axis(label="index / number of singular values", zero=True),
                Axis(label="singular value / norm", log=True),
            )
        )
    note = element(
        "p",
        "Of each kind of matrix the one in the middle layer. An error without structure is flat "
        "here; what a low-rank residual could still take off stands out on the left.",
        class_="note",
    )
    return join([note, legend(names), side_by_side(drawn)])


def distributions(labels: Sequence[str], found: Originals) -> Element:
    """Densities of the weights and of the errors."""
    names = ["original", *(f"error of {label}" for label in labels)]
    drawn = []
    for files in found.curves.values():
        series = [Series(label="original", points=next(iter(files.values())).weight_density)]
        for index, label in enumerate(labels):
            if label in files:
                points = files[label].error_density
                series.append(Series(label=names[index + 1], points=points, number=index + 1))
        drawn.append(
            chart(
                _one_name(files.values()),
                series,
                Axis(label="value / root mean square of the weights"),
                Axis(label="density", log=True),
            )
        )
    return join([legend(names), side_by_side(drawn)])


def _one_name(files: Iterable[Curves]) -> str:
    """The matrix; archives of other layers may have another one."""
    return " / ".join(dict.fromkeys(one.name for one in files))
