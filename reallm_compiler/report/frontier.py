"""Size against what is lost, a point for each archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reallm_compiler.report.drawing import Axis, Series, chart, legend, side_by_side
from reallm_compiler.report.elements import Element, element, join
from reallm_compiler.report.files import ModelFile
from reallm_compiler.report.layers import Norms

if TYPE_CHECKING:
    from reallm_compiler.evaluate import Evaluation


def frontier(
    models: Sequence[ModelFile], norms: Norms, quality: Mapping[str, Evaluation]
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
    return join([note, legend([model.label for model in models]), side_by_side(drawn)])


def _scatter(
    models: Sequence[ModelFile], xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis
) -> Element:
    series = [
        Series(label=model.label, points=[(at, value)], number=index)
        for index, (model, at, value) in enumerate(zip(models, xs, ys, strict=True))
    ]
    return chart(f"{y.label} over {x.label}", series, x, y, curves=False)


def _error(model: ModelFile, norms: Norms) -> float:
    if not norms:
        return model.mean_error or 0.0
    from reallm_compiler.evaluate.statistics import relative_total

    names = [row.name for row in model.budget.matrices]
    return relative_total(
        [model.errors[name] for name in names], [norms[model.label, name] for name in names]
    )
