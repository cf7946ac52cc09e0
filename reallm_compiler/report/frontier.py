"""Size against what is lost, a point for each archive."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reallm_compiler.errors import SourceError
from reallm_compiler.report.drawing import Axis, Point, Series, chart, legend, side_by_side
from reallm_compiler.report.elements import Element, element, join
from reallm_compiler.report.files import ModelFile
from reallm_compiler.report.layers import Norms

if TYPE_CHECKING:
    from reallm_compiler.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """The frontier that `reallm allocate --json` printed: (bytes, predicted KL) of each choice.

    Attributes:
        scope: whose bytes: those of the `file`, or of all `coded` matrices.
        mixes: the best choices.
        uniform: one candidate for all matrices.
        targets: what was chosen.
    """

    scope: str
    mixes: list[Point]
    uniform: list[Point]
    targets: list[Point]


def read_planned(path: str | os.PathLike[str]) -> Planned:
    """The frontier in a file.

    Raises:
        SourceError: it is not what `reallm allocate --json` prints.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        return Planned(
            scope=str(plain["scope"]),
            mixes=[_point(one) for one in plain["frontier"]],
            uniform=[_point(one) for one in plain["uniform"]],
            targets=[_point(one) for one in plain["targets"]],
        )
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", location=str(path)) from error
    except (ValueError, TypeError, KeyError, IndexError):
        raise SourceError(
            "this is not what `reallm allocate --json` prints",
            location=str(path),
            hint="write it with `reallm allocate RECIPE --model MODEL --json > frontier.json`",
        ) from None


def _point(plain: Mapping[str, float]) -> Point:
    return float(plain["bytes"]), float(plain["kl"])


def frontier(
    models: Sequence[ModelFile],
    norms: Norms,
    quality: Mapping[str, Evaluation],
    planned: Planned | None = None,
) -> Element:
    """Exact bits against error, and with a text bytes against what was measured on it."""
    coded = [model for model in models if model.budget.matrices]
    what = "error of all matrices as one" if norms else "mean relative error"
    drawn = [
        _scatter(
            coded,
            [float(model.budget.totals.exact_bits) for model in coded],
            [_error(model, norms) for model in coded],
            Axis(label="exact bits per weight"),
            Axis(label=what, zero=True),
        )
    ]
    measured = [model for model in models if model.label in quality]
    sizes = [float(model.budget.totals.file_bytes) for model in measured]
    for label, values in (
        ("KL, nats per token", [quality[model.label].kl for model in measured]),
        ("perplexity", [quality[model.label].perplexity for model in measured]),
    ):
        found = [value for value in values if value is not None]
        if measured and len(found) == len(values):
            zero = label != "perplexity"
            drawn.append(
                _scatter(
                    measured,
                    sizes,
                    found,
                    Axis(label="bytes of the file"),
                    Axis(label=label, zero=zero),
                )
            )
    note = element("p", "Further down and to the left is better.", class_="note")
    parts: list[str] = [note, legend([model.label for model in models]), side_by_side(drawn)]
    if planned is not None:
        parts.append(_planned(planned, measured, quality))
    return join(parts)


def _planned(
    planned: Planned, models: Sequence[ModelFile], quality: Mapping[str, Evaluation]
) -> Element:
    """What `reallm allocate` found, and beside it what was measured here."""
    whole = planned.scope == "file"
    measured = [
        (float(totals.file_bytes if whole else totals.coded_bytes), kl)
        for model in models
        for totals, kl in ((model.budget.totals, quality[model.label].kl),)
        if kl is not None
    ]
    labels = ["mixes", "one candidate for all", "targets", "measured archives"]
    found = (planned.mixes, planned.uniform, planned.targets, measured)
    series = [
        Series(label=label, points=sorted(points), number=number, joined=number == 0)
        for number, (label, points) in enumerate(zip(labels, found, strict=True))
    ]
    what = "the file" if whole else "all coded matrices"
    drawing = chart(
        "KL predicted by reallm allocate",
        series,
        Axis(label=f"bytes of {what}"),
        Axis(label="KL, nats per token", log=True),
    )
    heading = element("h3", "The frontier of an allocation")
    return join([heading, legend(labels), side_by_side([drawing])])


def _scatter(
    models: Sequence[ModelFile], xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis
) -> Element:
    series = [
        Series(label=model.label, points=[(at, value)], number=index)
        for index, (model, at, value) in enumerate(zip(models, xs, ys, strict=True))
    ]
    return chart(f"{y.label} over {x.label}", series, x, y)


def _error(model: ModelFile, norms: Norms) -> float:
    if not norms:
        return model.mean_error or 0.0
    from reallm_compiler.evaluate.statistics import relative_total

    names = [row.name for row in model.budget.matrices]
    return relative_total(
        [model.errors[name] for name in names], [norms[model.label, name] for name in names]
    )
