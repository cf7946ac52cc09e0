"""How each file was made: its recipe, what made it, and how tuning went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm_compiler.planning.opened import provenance_text
from reallm_compiler.planning.tuned import from_provenance
from reallm_compiler.recipe.plain_yaml import in_reading_order, to_yaml
from reallm_compiler.report.drawing import Axis, Series, chart, legend, side_by_side
from reallm_compiler.report.elements import Element, element, join, table
from reallm_compiler.report.files import AdapterFile, ModelFile, ReportFile
from reallm_compiler.report.overview import count, error


def recipes(models: Sequence[ModelFile]) -> Element:
    """The recipe in each archive, as one would write it."""
    parts = []
    for model in models:
        parts.append(element("h3", model.label))
        yaml = to_yaml(in_reading_order(dict(model.opened.plan.recipe)))
        parts.append(element("pre", yaml, tabindex="0"))
    return join(parts)


def provenance(files: Sequence[ReportFile]) -> Element:
    """Software, processor, digests, and the settings of adapters."""
    parts = []
    for file in files:
        parts.append(element("h3", file.label))
        if isinstance(file, ModelFile):
            stored = provenance_text(file.opened.manifest.document["provenance"])
            parts.append(_facts({"digest": file.digest.hex(), **stored}))
            continue
        base = {"digest": file.digest.hex(), "base": file.document.base.hex()}
        parts.append(_facts({**base, **file.provenance}))
        if file.document.settings:
            yaml = to_yaml(dict(file.document.settings))
            parts.append(element("pre", yaml, tabindex="0"))
    return join(parts)


def adapter_matrices(adapters: Sequence[AdapterFile]) -> Element:
    """A row for each matrix of each adapter."""
    columns = ["<matrix", "rank", "rounding of the factors", "bytes"]
    parts = []
    for adapter in adapters:
        rows = [
            [name, count(rank), error(rounding), count(size)]
            for name, rank, rounding, size in adapter.matrices()
        ]
        if rows:
            made = table(columns, rows, caption=adapter.label, class_="sorted")
            shown = f"{adapter.label}: {len(rows):,} matrices"
            parts.append(element("details", element("summary", shown), made))
    return join(parts)


def tuning(files: Sequence[ReportFile]) -> Element:
    """Held-out errors of blocks before and after tuning, and losses end to end by step."""
    drawn: list[Element] = []
    labels: list[str] = []
    blocks: list[Series] = []
    losses: list[Series] = []
    for file in files:
        tuned = from_provenance(_provenance_of(file))
        if not tuned.blocks and not tuned.losses:
            continue
        first = len(labels)
        for number, label in enumerate((f"{file.label}, before", file.label)):
            points = [(float(block), pair[number]) for block, pair in enumerate(tuned.blocks)]
            blocks.append(Series(label=label, points=points, number=first + number))
            labels.append(label)
        steps = [(float(step), loss) for step, loss in tuned.losses]
        losses.append(Series(label=file.label, points=steps, number=first + 1))
    if any(one.points for one in blocks):
        x, y = Axis(label="block", whole=True), Axis(label="mean squared error", zero=True)
        drawn.append(chart("held-out error of each block", blocks, x, y))
    if any(one.points for one in losses):
        x, y = Axis(label="steps", whole=True), Axis(label="nats per token")
        drawn.append(chart("held-out loss end to end", losses, x, y))
    return join([legend(labels), side_by_side(drawn)]) if drawn else Element()


def _provenance_of(file: ReportFile) -> Mapping[str, object]:
    if isinstance(file, AdapterFile):
        return file.document.provenance
    stored: Mapping[str, object] = file.opened.manifest.document["provenance"]
    return stored


def _facts(facts: Mapping[str, str]) -> Element:
    rows = [join([element("dt", name), element("dd", value)]) for name, value in facts.items()]
    return element("dl", *rows)
