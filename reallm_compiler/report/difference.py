"""What differs between two archives, two recipes or two budgets: settings, bytes, errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.progress import Progress
from reallm_compiler.report.documents import GROUPS, Document, Fields, read_document

ABSENT = None
"""Stands for a field that one side lacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A field that differs.

    Attributes:
        path: of the field, such as `defaults.quantizer.bits` or `rules[2].match[0]`.
        a, b: its values; None where a side has no such field.
    """

    path: str
    a: Any
    b: Any

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"path": self.path, "a": self.a, "b": self.b}


@dataclass(frozen=True, kw_only=True, slots=True)
class RowChange:
    """A matrix, tensor or file that differs.

    Attributes:
        name: its name.
        a, b: all of its fields; None where a side has no such row.
        changes: the fields that differ; empty where a side has no such row.
        decoded_error: ||A - B|| / ||A|| of a matrix as both archives decode it, if measured.
    """

    name: str
    a: Fields | None
    b: Fields | None
    changes: tuple[Change, ...]
    decoded_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; fields that are the same on both sides are left out."""
        changes = [change.to_json() for change in self.changes]
        plain: dict[str, Any] = {
            "name": self.name,
            "only_in": self.only_in,
            "changes": changes,
        }
        if self.decoded_error is not None:
            plain["decoded_error"] = self.decoded_error
        return plain

    @property
    def only_in(self) -> str | None:
        """The side that alone has this row, `a` or `b`; None where both have it."""
        return "b" if self.a is None else "a" if self.b is None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What differs between two documents of one kind.

    Attributes:
        a, b: what was compared.
        settings: fields that differ, by group of settings.
        rows: rows that differ, by group, in the order of the first document.
    """

    a: Document
    b: Document
    settings: Mapping[str, tuple[Change, ...]]
    rows: Mapping[str, tuple[RowChange, ...]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not any(self.settings.values()) and not any(self.rows.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys of `reallm diff --json`, see `docs/report.md`."""
        return {
            "kind": self.a.kind,
            "a": self.a.name,
            "b": self.b.name,
            "equal": self.equal,
            "settings": {
                group: [change.to_json() for change in changes]
                for group, changes in self.settings.items()
            },
            "rows": {group: [row.to_json() for row in rows] for group, rows in self.rows.items()},
        }


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    decoded: bool = False,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """What differs between two archives, two recipes, or two budgets.

    Args:
        a: an archive of a model or an adapter, a recipe, or what `reallm budget --json` printed.
        b: the other one, of the same kind.
        model: plan recipes on this model, and compare matrices and bytes as well.
        decoded: decode the matrices that differ in two archives of models, and measure how far
            they are from each other.
        decoder: as for `open`, where archives are decoded.
        allow_cost: as for `open`.
        progress: see `reallm_compiler.progress`; counts matrices that are decoded.

    Raises:
        SourceError: both are not of one kind, or `decoded` and they are no models.
        FormatError, RecipeError: one cannot be read.
    """
    found = compare_documents(read_document(a, model=model), read_document(b, model=model))
    if not decoded:
        return found
    if found.a.kind != "model":
        raise SourceError(
            "only archives of models are decoded", location=f"{found.a.name}, {found.b.name}"
        )
    from reallm_compiler.report.decoded import measure_distance

    rows = found.rows["matrices"]
    distances = measure_distance(
        found.a.name,
        found.b.name,
        [row.name for row in rows if _same_shape(row)],
        decoder=decoder,
        allow_cost=allow_cost,
        progress=progress,
    )
    measured = tuple(replace(row, decoded_error=distances.get(row.name)) for row in rows)
    return replace(found, rows={**found.rows, "matrices": measured})


def _same_shape(row: RowChange) -> bool:
    return row.a is not None and row.b is not None and row.a["shape"] == row.b["shape"]


def compare_documents(a: Document, b: Document) -> Difference:
    """What differs between two documents.

    Raises:
        SourceError: they are not of one kind.
    """
    if a.kind != b.kind:
        raise SourceError(
            f"{_article(a.kind)} and {_article(b.kind)} are not compared with each other",
            location=f"{a.name}, {b.name}",
            hint="give two archives of one kind, two recipes, or two files of `budget --json`",
        )
    groups = [group for group in GROUPS if group in a.settings or group in b.settings]
    return Difference(
        a=a,
        b=b,
        settings={
            group: tuple(changes(a.settings.get(group, {}), b.settings.get(group, {})))
            for group in groups
        },
        rows={
            group: tuple(_rows(a.rows.get(group, {}), b.rows.get(group, {})))
            for group in dict.fromkeys((*a.rows, *b.rows))
        },
    )


def changes(a: Any, b: Any, path: str = "") -> Iterator[Change]:  # noqa: ANN401
    """The leaves that differ between two trees of plain data, in the order of the first."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys((*a, *b)):
            below = f"{path}.{key}" if path else str(key)
            yield from changes(a.get(key, ABSENT), b.get(key, ABSENT), below)
    elif _has_parts(a) and _has_parts(b):
        for index in range(max(len(a), len(b))):
            here = a[index] if index < len(a) else ABSENT
            there = b[index] if index < len(b) else ABSENT
            yield from changes(here, there, f"{path}[{index}]")
    elif a != b or type(a) is not type(b):
        yield Change(path=path, a=a, b=b)


def _has_parts(value: Any) -> bool:  # noqa: ANN401
    """Whether a list is compared item by item: one of maps, such as rules or residuals."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and any(isinstance(item, Mapping) for item in value)


def _rows(a: Mapping[str, Fields], b: Mapping[str, Fields]) -> Iterator[RowChange]:
    for name in dict.fromkeys((*a, *b)):
        here, there = a.get(name), b.get(name)
        found = tuple(changes(here, there)) if here is not None and there is not None else ()
        if found or here is None or there is None:
            yield RowChange(name=name, a=here, b=there, changes=found)


def _article(kind: str) -> str:
    return {
        "model": "the archive of a model",
        "adapter": "an adapter",
        "recipe": "a recipe",
        "budget": "a budget",
    }[kind]
