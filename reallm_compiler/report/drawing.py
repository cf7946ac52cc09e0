"""Curves and points as SVG, drawn here: no library, no script, the same bytes each time.

Colours are names that the page's style gives a value, so that a drawing follows light and dark.
Curves differ in their dashes and points in their shapes as well: nothing is said by colour alone.
All drawings have one size, that of a telephone's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reallm_compiler.report.elements import Element, element, join

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 38
"""Margins, for the labels of the axes."""

COLOURS = 8
"""Colours that the style has; `s0` to `s7`."""

DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 3")

TICKS = 5
"""Labels of an axis, about."""

MARKED = 40
"""Most points of a curve that are marked one by one."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve, or one group of points.

    Attributes:
        label: its name.
        points: (x, y), in ascending order of x for a curve.
        low, high: range around each point, if any.
        number: which colour, dash and shape it has.
        joined: whether a curve goes through the points.
    """

    label: str
    points: Sequence[Point]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    number: int = 0
    joined: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows, with its unit.
        log: whether it is logarithmic.
        whole: whether it counts in whole numbers.
        zero: whether it begins at 0.
    """

    label: str
    log: bool = False
    whole: bool = False
    zero: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a value stands between two ends of an axis."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    move: Callable[[float], float] = field(default=lambda value: value)

    def __call__(self, value: float) -> float:
        part = (self.move(value) - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, part)) * (self.end - self.start)


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Element:
    """A drawing of series, which says in words what it shows.

    Args:
        title: what is drawn; it is the heading too.
        series: what is drawn; values that are not finite, or that a logarithmic axis does not
            have, are left out.
        x, y: the axes.
    """
    drawn = [one for one in (_shown(one, x, y) for one in series) if one.points]
    points = [point for one in drawn for point in one.points]
    if not points:
        return element("p", f"{title}: nothing to draw", class_="note")
    reach = [value for one in drawn for value in (*one.low, *one.high)]
    across = _scale([at for at, _ in points], x, LEFT, WIDTH - RIGHT)
    up = _scale([value for _, value in points] + reach, y, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(across, up, x, y)]
    for one in drawn:
        parts += _curve(one, across, up) if one.joined else []
        if not one.joined or len(one.points) <= MARKED:
            parts += [_mark(across(at), up(value), one) for at, value in one.points]
    described = "; ".join(_in_words(one) for one in drawn)
    drawing = element(
        "svg",
        element("title", title),
        element("desc", f"{y.label} over {x.label}. {described}."),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {y.label} over {x.label}",
    )
    return element("figure", element("figcaption", title), drawing)


def legend(labels: Sequence[str]) -> Element:
    """The names of series beside how they are drawn, for several drawings of the same series."""
    items = []
    for number, label in enumerate(labels):
        one = Series(label=label, points=[(0, 0)], number=number)
        sample = element(
            "svg",
            element("path", d="M1 6H27", fill="none", **_stroke(one)),
            _mark(14, 6, one),
            viewBox="0 0 28 12",
            class_="sample",
            aria_hidden="true",
        )
        items.append(element("li", sample, label))
    return element("ul", *items, class_="legend")


def _shown(one: Series, x: Axis, y: Axis) -> Series:
    """The series without what cannot be drawn."""

    def fits(value: float, axis: Axis) -> bool:
        return math.isfinite(value) and (value > 0 or not axis.log)

    kept = [i for i, (at, value) in enumerate(one.points) if fits(at, x) and fits(value, y)]
    ranged = bool(one.low) and all(
        fits(value, y) for i in kept for value in (one.low[i], one.high[i])
    )
    return Series(
        label=one.label,
        points=[one.points[i] for i in kept],
        low=[one.low[i] for i in kept] if ranged else (),
        high=[one.high[i] for i in kept] if ranged else (),
        number=one.number,
        joined=one.joined,
    )


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    if axis.log:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        top = max(top, bottom + 1)
        between = max(1, -(-(top - bottom) // TICKS))
        powers = [10.0**power for power in range(bottom, top + 1, between)]
        return _Scale(bottom, top, start, end, powers, math.log10)
    if axis.zero:
        low = min(0.0, low)
    if high == low:
        low, high = (low - 0.5, high + 0.5) if not axis.zero else (low, high or 1.0)
    step = _step(high - low, whole=axis.whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    if axis.whole:  # no space beyond the first and the last layer
        ticks = [tick for tick in ticks if low <= tick <= high]
        return _Scale(low, high, start, end, ticks)
    return _Scale(first * step, last * step, start, end, ticks)


def _step(width: float, *, whole: bool) -> float:
    """The distance of labels: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width / TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * TICKS >= width)
    return max(1.0, round(step)) if whole else step


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[Element]:
    lines, labels = [], []
    bottom = HEIGHT - BOTTOM
    for tick in up.ticks:
        at = _at(up(tick))
        lines.append(f"M{LEFT} {at}H{WIDTH - RIGHT}")
        labels.append(_label(tick_text(tick, up.ticks, y), LEFT - 5, up(tick) + 3.5, "end"))
    for tick in across.ticks:
        lines.append(f"M{_at(across(tick))} {bottom}v4")
        shown = tick_text(tick, across.ticks, x)
        labels.append(_label(shown, across(tick), bottom + 15, "middle"))
    middle = TOP + (bottom - TOP) / 2
    return [
        element("path", d="".join(lines), class_="grid"),
        *labels,
        _label(x.label, LEFT + (WIDTH - RIGHT - LEFT) / 2, HEIGHT - 6, "middle"),
        element(
            "text",
            y.label,
            transform=f"translate(9 {_at(middle)}) rotate(-90)",
            text_anchor="middle",
        ),
    ]


def _label(shown: str, x: float, y: float, anchor: str) -> Element:
    return element("text", shown, x=_at(x), y=_at(y), text_anchor=anchor)


def tick_text(tick: float, ticks: Sequence[float], axis: Axis) -> str:
    """A label with as many decimals as all of the axis need."""
    if axis.log:
        return f"1e{round(math.log10(tick))}" if not 0.01 <= tick <= 1000 else f"{tick:g}"
    largest = max(map(abs, ticks))
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if largest >= limit:
            scale = 1000.0 if unit == "k" else limit
            return f"{tick / scale:g}{unit if tick else ''}"
    return f"{round(tick, 10):g}"


def _curve(one: Series, across: _Scale, up: _Scale) -> list[Element]:
    parts = []
    at = [across(x) for x, _ in one.points]
    if one.low and any(low < high for low, high in zip(one.low, one.high, strict=True)):
        ends = [*zip(at, map(up, one.high), strict=True)]
        ends += reversed([*zip(at, map(up, one.low), strict=True)])
        path = "M" + "L".join(f"{_at(x)} {_at(y)}" for x, y in ends) + "Z"
        parts.append(element("path", d=path, class_=f"range f{one.number % COLOURS}"))
    if len(at) > 1:
        steps = "L".join(f"{_at(x)} {_at(up(y))}" for x, (_, y) in zip(at, one.points, strict=True))
        parts.append(element("path", d=f"M{steps}", fill="none", **_stroke(one)))
    return parts


def _stroke(one: Series) -> dict[str, str | None]:
    dash = DASHES[one.number % len(DASHES)]
    return {"class_": f"line s{one.number % COLOURS}", "stroke_dasharray": dash or None}


def _mark(x: float, y: float, one: Series) -> Element:
    """A point by the shape of its series: circle, square, triangle, diamond, cross."""
    shapes = (
        f"M{_at(x - 3)} {_at(y)}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
        f"M{_at(x - 3)} {_at(y - 3)}h6v6h-6Z",
        f"M{_at(x)} {_at(y - 4)}l4 7h-8Z",
        f"M{_at(x)} {_at(y - 4)}l4 4l-4 4l-4 -4Z",
        f"M{_at(x - 4)} {_at(y - 1)}h3v-3h2v3h3v2h-3v3h-2v-3h-3Z",
    )
    shape = shapes[one.number % len(shapes)]
    return element("path", d=shape, class_=f"mark f{one.number % COLOURS}")


def _in_words(one: Series) -> str:
    """The ends of a series and its extremes, for those who cannot see it."""
    values = [value for _, value in one.points]
    (first, start), (last, end) = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return f"{one.label}: {start:.4g} at {first:.4g}"
    return (
        f"{one.label}: {start:.4g} at {first:.4g} to {end:.4g} at {last:.4g}, "
        f"least {min(values):.4g}, largest {max(values):.4g}"
    )


def _at(value: float) -> str:
    """A coordinate with one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def side_by_side(drawings: Sequence[str]) -> Element:
    """Drawings in as many columns as there is width for."""
    return element("div", join(drawings), class_="panels")
