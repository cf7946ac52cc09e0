"""Drawings: where points stand, what is left out, and what is said in words."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from reallm_compiler.report.drawing import (
    BOTTOM,
    DASHES,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Series,
    chart,
    legend,
    tick_text,
)  # fmt: skip

X, Y = Axis(label="layer", whole=True), Axis(label="error", zero=True)


def curves(drawing: str) -> list[list[tuple[float, float]]]:
    """The points of each curve."""
    root = ElementTree.fromstring(drawing)
    paths = [one.get("d", "") for one in root.iter("path") if "line" in one.get("class", "")]
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]
        for path in paths
    ]


def test_points_stand_where_the_axes_say() -> None:
    one = Series(label="a", points=[(0, 0.0), (1, 0.2), (4, 0.4)])
    (found,) = curves(chart("title", [one], X, Y))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = (bottom + TOP) / 2
    expected = [(LEFT, bottom), (LEFT + (right - LEFT) / 4, middle), (right, TOP)]
    for here, wanted in zip(found, expected, strict=True):
        assert here == pytest.approx(wanted, abs=0.06)


def test_powers_of_ten_stand_equally_far_apart() -> None:
    one = Series(label="a", points=[(0, 0.01), (1, 0.1), (2, 1.0), (3, 0.0), (4, math.nan)])
    (found,) = curves(chart("t", [one], X, Axis(label="density", log=True)))
    assert len(found) == 3  # neither zero nor what is not a number
    assert found[0][1] - found[1][1] == pytest.approx(found[1][1] - found[2][1], abs=0.11)


def test_what_is_drawn_is_said_in_words() -> None:
    drawing = chart("<Q>", [Series(label="<b>", points=[(0, 1.0), (1, 3.0)])], X, Y)
    root = ElementTree.fromstring(drawing)
    assert root.findtext("svg/title") == "<Q>"
    said = root.findtext("svg/desc")
    assert said == "error over layer. <b>: 1 at 0 to 3 at 1, least 1, largest 3."
    assert root.find("svg").get("role") == "img"  # type: ignore[union-attr]


def test_ranges_are_shaded_where_there_are_several() -> None:
    flat = Series(label="a", points=[(0, 1.0), (1, 1.0)], low=[1, 1], high=[1, 1])
    wide = Series(label="a", points=[(0, 1.0), (1, 1.0)], low=[0.5, 0.5], high=[1, 2])
    assert 'class="range' not in chart("t", [flat], X, Y)
    assert 'class="range' in chart("t", [wide], X, Y)


def test_nothing_to_draw_is_said() -> None:
    assert "nothing to draw" in chart("t", [Series(label="a", points=[])], X, Y)


def test_series_differ_without_colour() -> None:
    samples = legend([""] * len(DASHES)).split("<li>")[1:]
    shapes = {re.sub(r'class="[^"]*"', "", sample) for sample in samples}
    assert len(shapes) == len(DASHES)


@pytest.mark.parametrize(
    ("tick", "largest", "log", "shown"),
    [
        (0.30000000000000004, 0.5, False, "0.3"),
        (4_500_000, 6_000_000, False, "4.5M"),
        (20_000, 30_000, False, "20k"),
        (0, 30_000, False, "0"),
        (1e-4, 1, True, "1e-4"),
        (0.1, 1, True, "0.1"),
    ],
)
def test_labels_of_an_axis(tick: float, largest: float, log: bool, shown: str) -> None:
    assert tick_text(tick, [0.0 if not log else tick, largest], Axis(label="", log=log)) == shown
