"""The frontier as a picture: damage over bytes, of mixes, of single candidates, and the targets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from reallm_compiler.evaluate.pictures import check_picture, new_figure, save_figure
from reallm_compiler.search.report import AllocateReport, Point


def draw_frontier(path: str | os.PathLike[str], report: AllocateReport) -> None:
    """Draw what an allocation found as PNG or SVG.

    Raises:
        OutputError: the path does not serve, or cannot be written.
        EvaluationError: matplotlib is not installed.
    """
    file = check_picture(path)
    figure = new_figure(8, 5)
    axis = figure.subplots()
    axis.plot(*_axes(report.frontier), marker=".", label="mixes")
    axis.plot(*_axes(report.uniform), linestyle="", marker="s", label="one candidate for all")
    for point in report.uniform:
        axis.annotate(
            point.label,
            (float(point.bits), point.kl),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            parse_math=False,
        )
    chosen = [lock.point for lock in report.locks]
    axis.plot(*_axes(chosen), linestyle="", marker="*", markersize=12, label="chosen")
    if all(point.kl > 0 for point in (*report.frontier, *report.uniform, *chosen)):
        axis.set_yscale("log")
    counted = "of the file" if report.scope == "file" else "of coded matrices"
    axis.set_xlabel(f"bits per weight, {counted}")
    axis.set_ylabel("predicted KL, nats per token")
    axis.legend()
    save_figure(figure, file)


def _axes(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [float(point.bits) for point in points], [point.kl for point in points]
