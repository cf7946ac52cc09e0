"""The manifest: the document that says everything about an archive but its section bytes.

    {"kind": str, "features": [str], "sections": [{...}], "document": {...}}

`kind` says what the archive is and so what its document must be (`reallm_formats.kinds`);
`features` names what a reader must understand to read it at all. The maps that SPEC.md describes
are closed: an unknown key is refused, unless the file's minor version is newer than ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reallm_formats import canonical, v1
from reallm_formats.checks import closed_map, typed
from reallm_formats.errors import FormatError
from reallm_formats.kinds import check_document
from reallm_formats.sections import (
    ROW_VALUES,
    Row,
    SectionEntry,
    check_number,
    check_order,
    check_unique,
    parse_entry,
)

KEYS: Final = ("document", "features", "kind", "sections")
_FEATURE: Final = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an archive holds.

    Attributes:
        kind: what the archive is: `model` or `adapter`.
        features: names of features that a reader must know, sorted.
        sections: the section table, in the file's order.
        document: the content, by kind, as plain data.
    """

    kind: str
    features: tuple[str, ...] = ()
    sections: tuple[SectionEntry, ...] = ()
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The sections without their offsets."""
        return [section.row for section in self.sections]

    def plain(self) -> dict[str, Any]:
        """The manifest as plain data."""
        return {
            "kind": self.kind,
            "features": list(self.features),
            "sections": [section.plain() for section in self.sections],
            "document": self.document,
        }


def encode_manifest(manifest: Manifest) -> bytes:
    """The one byte string of a manifest."""
    frame, count = canonical.counted(replace(manifest, sections=()).plain())
    count += sum(ROW_VALUES + len(section.shape) for section in manifest.sections)
    # Rows are in normal form as they are: they need not be copied value by value.
    rows = [section.plain() for section in manifest.sections]
    data = canonical.pack(frame | {"sections": rows})
    canonical.check_count(count, len(data))
    return data


def parse_manifest(data: bytes, *, minor: int = v1.MINOR) -> Manifest:
    """The manifest that `data` is the byte string of, with all its rules checked.

    Args:
        data: the bytes between the header and the first section.
        minor: the minor version of the file; under a newer one unknown keys pass.

    Raises:
        FormatError: the broken rule (C, M, S or D) and its location.
    """
    plain = canonical.decode(data, base=v1.HEADER_BYTES)
    manifest = manifest_of(plain, newer=minor > v1.MINOR)
    check_order(manifest.sections, v1.HEADER_BYTES + len(data))
    return manifest


def manifest_of(plain: object, *, newer: bool = False) -> Manifest:
    """A manifest from plain data; only the offsets of the sections are not checked."""
    items = closed_map(plain, KEYS, "M1", "manifest", newer=newer)
    features = check_features(items["features"])
    kind = typed(items["kind"], str, "M3", "manifest: kind")
    rows = typed(items["sections"], list, "S1", "manifest: sections")
    check_number(len(rows))
    sections = tuple(
        parse_entry(row, f"manifest: sections[{index}]", newer=newer)
        for index, row in enumerate(rows)
    )
    table = [section.row for section in sections]
    check_unique(table)
    document = typed(items["document"], dict, "M1", "manifest: document")
    check_document(kind, document, table, newer=newer)
    return Manifest(kind=kind, features=features, sections=sections, document=document)


def check_features(value: object) -> tuple[str, ...]:
    """Feature names from decoded data: sorted, each once (M4), each known (M5)."""
    features: Sequence[Any] = typed(value, list, "M4", "manifest: features")
    for index, feature in enumerate(features):
        where = f"manifest: features[{index}]"
        typed(feature, str, "M4", where)
        if not _FEATURE.fullmatch(feature) or len(feature) > v1.MAX_FEATURE_BYTES:
            message = f"{feature!r} is not a feature's name"
            raise FormatError("M4", message, location=where)
        if index and feature <= features[index - 1]:
            message = f"the feature `{feature}` is not in sorted order, or stands twice"
            raise FormatError("M4", message, location=where)
    for index, feature in enumerate(features):
        if feature not in v1.FEATURES:
            raise FormatError(
                "M5",
                f"the file needs the feature `{feature}`, which this reader does not have",
                location=f"manifest: features[{index}]",
                hint="install a newer reallm",
            )
    return tuple(features)
