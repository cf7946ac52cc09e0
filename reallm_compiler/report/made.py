"""How each file was made: its recipe, what made it, and how tuning went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm_compiler.planning.opened import provenance_text
from reallm_compiler.recipe.plain_yaml import in_reading_order, to_yaml
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


def _facts(facts: Mapping[str, str]) -> Element:
    rows = [join([element("dt", name), element("dd", value)]) for name, value in facts.items()]
    return element("dl", *rows)
