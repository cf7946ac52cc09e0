"""Archives made by hand, right or wrong, without the package's own writer.

The vectors and the fuzzer need files that no honest writer makes, with digests that fit so that
the rules behind them are reached. This is a second, plain implementation of SPEC.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack

Plain = dict[str, Any]
Section = tuple[str, str, list[int], bytes]

MODEL: Plain = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}


def ordered(value: object) -> Any:  # noqa: ANN401 (plain data)
    """Plain data with the keys of every map sorted."""
    if isinstance(value, Mapping):
        return {key: ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [ordered(item) for item in value]
    return value


def pack(value: object) -> bytes:
    """Canonical msgpack of plain data."""
    return bytes(msgpack.packb(ordered(value), use_bin_type=True))


def set_offsets(manifest: Plain, datas: Iterable[bytes]) -> None:
    """Fill in offsets and digests of the manifest's sections, in place."""
    contents = list(datas)
    for row, data in zip(manifest["sections"], contents, strict=True):
        row["sha256"] = hashlib.sha256(data).digest()
    before = -1
    while len(pack(manifest)) != before:
        before = len(pack(manifest))
        end = 128 + before
        for row, data in zip(manifest["sections"], contents, strict=True):
            row["offset"] = (end + 63) // 64 * 64
            end = row["offset"] + len(data)


def join(
    manifest: bytes, body: bytes, *, header: Mapping[str, Any] | None = None, repair: bool = True
) -> bytes:
    """A file of an encoded manifest and all that follows it.

    Args:
        manifest: the encoded manifest.
        body: what follows: padding and sections.
        header: fields to replace: magic, major, minor, header_bytes, manifest_bytes,
            file_bytes, reserved.
        repair: compute the digest; otherwise it is zeros.
    """
    fields: Plain = {
        "magic": b"\x89RLM\r\n\x1a\n",
        "major": 1,
        "minor": 0,
        "header_bytes": 128,
        "manifest_bytes": len(manifest),
        "file_bytes": 128 + len(manifest) + len(body),
        "digest": bytes(32),
        "reserved": bytes(64),
    }
    fields.update(header or {})
    blank = struct.pack("<8sHHIQQ32s64s", *fields.values())
    if repair:
        fields["digest"] = hashlib.sha256(blank + manifest).digest()
    return struct.pack("<8sHHIQQ32s64s", *fields.values()) + manifest + body


def body_of(rows: Iterable[Mapping[str, Any]], datas: Iterable[bytes], start: int) -> bytes:
    """Padding and sections of a file whose manifest ends at byte `start`."""
    body = b""
    for row, data in zip(rows, datas, strict=True):
        body += bytes(row["offset"] - start - len(body)) + data
    return body


def archive(
    sections: Iterable[Section] = (),
    document: Plain | None = None,
    *,
    edit: Callable[[Plain], object] | None = None,
    header: Mapping[str, Any] | None = None,
    repair: bool = True,
    kind: str = "model",
) -> bytes:
    """A whole file.

    Args:
        sections: (name, dtype, shape, data) in order.
        document: the document; for a model, keys that are left out are empty.
        edit: changes the manifest after offsets and digests are filled in. It must keep the
            manifest's length if the sections are to stay in place.
        header: header fields to replace.
        repair: compute the header's digest.
        kind: what the archive is.
    """
    given = list(sections)
    datas = [data for *_, data in given]
    manifest: Plain = {
        "kind": kind,
        "features": [],
        "sections": [
            {"name": name, "dtype": dtype, "shape": shape, "offset": 0, "sha256": b""}
            for name, dtype, shape, _ in given
        ],
        "document": {**(MODEL if kind == "model" else {}), **(document or {})},
    }
    set_offsets(manifest, datas)
    body = body_of(manifest["sections"], datas, 128 + len(pack(manifest)))
    if edit is not None:
        edit(manifest)
    return join(pack(manifest), body, header=header, repair=repair)
