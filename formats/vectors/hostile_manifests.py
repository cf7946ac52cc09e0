"""Manifests that are well encoded and say something wrong: envelope and section table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vectors import forge
from vectors.forge import Plain, archive, join, pack
from vectors.samples import KEPT, TEXT, TEXT_2


def manifests() -> Iterator[tuple[str, str, bytes]]:
    """Manifests that are well encoded and say something wrong."""

    def edited(**changes: Any) -> bytes:  # noqa: ANN401
        return archive(edit=lambda manifest: manifest.update(changes))

    def row(**changes: Any) -> bytes:  # noqa: ANN401
        return archive([TEXT], edit=lambda manifest: manifest["sections"][0].update(changes))

    yield "M1", "list", join(pack([]), b"")
    yield "M1", "no-kind", archive(edit=lambda manifest: manifest.pop("kind"))
    yield "M1", "document-list", edited(document=[])
    yield "M2", "unknown-key", edited(later=1)
    yield "M2", "section-key", row(later=1)
    yield "M2", "document-key", edited(document={**forge.MODEL, "later": 1})
    yield "M3", "unknown-kind", edited(kind="poem")
    yield "M3", "number", edited(kind=1)
    yield "M4", "text", edited(features="x")
    yield "M4", "number", edited(features=[1])
    yield "M4", "bad-name", edited(features=["Not A Name"])
    yield "M4", "unsorted", edited(features=["b", "a"])
    yield "M4", "twice", edited(features=["a", "a"])
    yield "M5", "unknown", edited(features=["time_travel"])
    yield "S1", "map", edited(sections={})
    yield "S1", "row-list", edited(sections=[[]])
    yield "S1", "no-offset", archive([TEXT], edit=lambda m: m["sections"][0].pop("offset"))
    yield "S1", "name-bytes", row(name=b"file:a")
    yield "S2", "empty", row(name="")
    yield "S2", "nul", row(name="tensor:a\0b")
    yield "S2", "escape", row(name="tensor:\x1b[2J")
    yield "S2", "right-to-left", row(name="tensor:\u202egpj.exe")
    yield "S2", "long", row(name="tensor:" + "a" * 506)
    yield "S3", "no-space", row(name="config.json")
    yield "S3", "no-role", row(name="matrix:up")
    yield "S3", "bad-role", row(name="matrix:up/Codes")
    yield "S3", "no-owner", row(name="share:/codebook")
    yield "S3", "no-tensor", row(name="tensor:")
    yield "S4", "twice", archive([TEXT, TEXT])
    paths = {
        "parent": "../x",
        "inner-parent": "a/../../x",
        "absolute": "/etc/passwd",
        "backslash": "..\\x",
        "drive": "C:x",
        "dot": "./x",
        "empty-part": "a//x",
        "folder": "a/",
        "trailing-dot": "a./x",
        "long-part": "a" * 256,
        "device": "NUL.json",
        "device-as-folder": "a/com1/b",
    }
    for name, path in paths.items():
        yield "S5", name, row(name=f"file:{path}")
    yield (
        "S5",
        "file-as-folder",
        archive([("file:a", "u8", [0], b""), ("file:a/b", "u8", [0], b"")]),
    )
    alike = {
        "case-alone": ("a.json", "A.json"),
        "folder-by-case": ("A", "a/b"),
        "normalization-alone": ("\u00e9.json", "e\u0301.json"),
    }
    for name, pair in alike.items():
        yield "S5", name, archive([(f"file:{path}", "u8", [0], b"") for path in pair])
    yield "S6", "unknown", row(dtype="f4")
    yield "S6", "number", row(dtype=8)
    yield "S7", "rank-9", row(shape=[1] * 9)
    yield "S7", "negative", row(shape=[-1])
    yield "S7", "true", row(shape=[True])
    yield "S7", "float", row(shape=[2.0])
    yield "S7", "extent", row(shape=[(1 << 48) + 1])
    yield "S7", "product", row(shape=[1 << 48, 1 << 12])
    yield "S7", "product-before-zero", row(shape=[1 << 48, 1 << 48, 0])
    yield "S7", "map", row(shape={})
    yield "S8", "text", row(offset="0")
    yield "S8", "in-header", row(offset=0)
    yield "S8", "not-aligned", row(offset=321)
    yield "S8", "hole", row(offset=384)
    yield "S8", "huge", row(offset=(1 << 64) - 1)
    yield "S8", "overlap", archive([TEXT, KEPT], edit=_overlap)
    yield "S8", "overlap-before-the-last", archive([TEXT, TEXT_2, KEPT], edit=_overlap)
    yield "S8", "manifest-before-the-last", archive([TEXT, KEPT], edit=_first_at(256))
    yield "S8", "beyond-before-the-last", archive([TEXT, KEPT], edit=_first_at(512))
    yield "S8", "past-the-end", row(shape=[3])
    yield "S8", "hidden-tail", row(shape=[1])
    yield "S8", "nothing-owns-it", join(pack({**_plain(), "sections": []}), bytes(64))
    yield "S10", "short", row(sha256=bytes(31))
    yield "S10", "text", row(sha256="0" * 32)


def _plain() -> Plain:
    return {"kind": "model", "features": [], "sections": [], "document": forge.MODEL}


def _overlap(manifest: Plain) -> None:
    first, second = manifest["sections"][:2]
    second["offset"] = first["offset"]


def _first_at(offset: int) -> Callable[[Plain], None]:
    """The first section somewhere else, the others where they are."""

    def edit(manifest: Plain) -> None:
        manifest["sections"][0]["offset"] = offset

    return edit
