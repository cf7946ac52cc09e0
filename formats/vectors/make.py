"""Makes the golden and the hostile files of this folder, and cases.json that lists them.

    python formats/vectors/make.py --write      (from the repository's root)

Nothing else writes here. The files of a released version are never made again: a change of one
of them is a change of the format.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import forge  # noqa: E402 (a sibling script, not a package)
from forge import Plain, archive, join, pack  # noqa: E402

TEXT: forge.Section = ("file:config.json", "u8", [2], b"{}")
TEXT_2: forge.Section = ("file:other.json", "u8", [2], b"[]")
KEPT: forge.Section = ("tensor:norm.weight", "f32", [2], struct.pack("<2f", 1, -2))
CODES: forge.Section = ("matrix:up/codes", "b3", [2, 3], b"\x88\xc6\x01")
MATRIX: Plain = {
    "name": "up",
    "shape": [2, 3],
    "dtype": "bf16",
    "tensor": "up.weight",
    "index": None,
    "transposed": False,
    "method": 0,
    "relative_error": 0.125,
}
ROW: Plain = {
    "name": "up",
    "shape": [2, 3],
    "rank": 1,
    "dtype": "f16",
    "gain": True,
    "rounding_error": 0.125,
}
PARTS: list[forge.Section] = [
    ("matrix:up/l1", "f16", [2, 1], struct.pack("<2e", 0.5, -1)),
    ("matrix:up/l2", "f16", [1, 3], struct.pack("<3e", 1, 2, 3)),
    ("matrix:up/gain", "f16", [2], struct.pack("<2e", 1.5, 0)),
]
DECODER: list[forge.Section] = [
    ("share:decoder/decoder_codes", "b6", [3], b"\x81\x30\x00"),
    ("share:decoder/decoder_scales", "f16", [1], struct.pack("<e", 0.25)),
    ("share:decoder/decoder_values", "f16", [2], struct.pack("<2e", 1, -2)),
]
MOMENTS: Plain = {
    "name": "up",
    "shape": [2, 3],
    "sha256": bytes(range(32)),
    "inputs": "up",
    "input_form": "full",
    "output_form": "diagonal",
}
SUMS: list[forge.Section] = [
    ("matrix:up/inputs", "f32", [6], struct.pack("<6f", 1, 0, 2, -1, 0, 3)),
    ("matrix:up/mean_abs", "f32", [3], struct.pack("<3f", 1, 1, 1.5)),
    ("matrix:up/counts", "u64", [2], struct.pack("<2Q", 7, 0)),
    ("matrix:up/weighted_inputs", "f32", [6], struct.pack("<6f", 1, 0, 1, 0, 0, 1)),
    ("matrix:up/outputs", "f32", [2], struct.pack("<2f", 0.5, 0.25)),
    ("matrix:up/weighted_outputs", "f32", [2], struct.pack("<2f", 1, 0)),
    ("matrix:up/energy", "f64", [], struct.pack("<d", 2.5)),
]
UNTESTABLE = {"F1": "it is about what is not a file: a test makes a folder, a pipe and no file"}


def model(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """A document with one matrix."""
    return {**forge.MODEL, "methods": [{}], "matrices": [MATRIX], **changes}


def adapter(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of an adapter of one matrix."""
    base = bytes(range(32))
    return {"base": base, "matrices": [ROW], "provenance": {}, "settings": {}, **changes}


def decoder(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of a decoder."""
    structure = {"patch": [8, 8], "latent": [1, 4, 4], "width": 1, "decoder_bits": 6}
    return {"provenance": {"reallm": "0.1.0"}, "structure": structure, **changes}


def statistics(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of statistics of one matrix."""
    return {"matrices": [MOMENTS], "provenance": {}, "settings": {}, "tokens": 7, **changes}


def accepted() -> Iterator[tuple[str, bytes]]:
    """Archives that every reader of version 1.0 opens."""
    yield "empty", archive()
    yield "tiny", archive([TEXT])
    yield (
        "zero-sized",
        archive(
            [
                ("tensor:none", "f32", [0, 281474976710656], b""),
                ("tensor:scalar", "i16", [], b"\x01\x80"),
                ("tensor:last", "u8", [0], b""),
            ]
        ),
    )
    yield "dtypes", archive(list(_one_of_each()), model())
    stack = [{**MATRIX, "name": f"e/{i}", "tensor": "e", "index": i} for i in range(2)]
    sections: list[forge.Section] = [
        CODES,
        ("matrix:up/l1", "f16", [2, 1], struct.pack("<2e", 0.5, -1)),
        ("share:group one/codebook", "bf16", [2, 2], bytes.fromhex("803f00c000000041")),
        ("matrix:e/0/codes", "b16", [1], b"\xff\xff"),
        ("matrix:e/1/codes", "b1", [9], b"\xff\x01"),
        KEPT,
        TEXT,
        ("file:tokenizer/vocab.txt", "u8", [3], "é\n".encode()),
    ]
    document = model(
        recipe={"reallm": 1, "defaults": {"rank": "1/64", "list": [1, -1, 1.5, None, True]}},
        methods=[{"quantizer": {"kind": "uniform", "bits": 3}}],
        matrices=[MATRIX, *stack],
        ties={"head.weight": "norm.weight"},
        provenance={"reallm": "0.1.0", "source": bytes(range(32)), "seed": -1},
    )
    yield "model", archive(sections, document)

    rows = [
        ROW,
        {**ROW, "name": "e/0", "dtype": "i8", "gain": False, "rounding_error": 0.0},
        {**ROW, "name": "bare", "rank": 0},
        {**ROW, "name": "none", "rank": 0, "gain": False},
    ]
    coded: list[forge.Section] = [
        ("matrix:e/0/l1", "i8", [2, 1], b"\x7f\x81"),
        ("matrix:e/0/l2", "i8", [1, 3], b"\x01\x00\xff"),
        ("matrix:e/0/l1_scales", "f16", [1], struct.pack("<e", 0.25)),
        ("matrix:e/0/l2_scales", "f16", [1], struct.pack("<e", 2)),
        ("matrix:bare/gain", "f16", [2], struct.pack("<2e", 1, 2)),
    ]
    settings = {"stages": ["block", "e2e"], "lr": 1e-05}
    tuned = adapter(matrices=rows, settings=settings, provenance={"reallm": "0.1.0"})
    yield "adapter", archive([*PARTS, *coded], tuned, kind="adapter")

    yield "decoder", archive(DECODER, decoder(), kind="decoder")

    others: list[Plain] = [
        {**MOMENTS, "name": "gate", "shape": [1, 3], "output_form": "none"},
        {**MOMENTS, "name": "e/0", "shape": [1, 2], "inputs": "e/0", "input_form": "diagonal"},
    ]
    more: list[forge.Section] = [
        ("matrix:gate/counts", "u64", [2], struct.pack("<2Q", 7, 0)),
        ("matrix:e/0/inputs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/mean_abs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/counts", "u64", [2], struct.pack("<2Q", 3, 1)),
        ("matrix:e/0/weighted_inputs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/outputs", "f32", [1], struct.pack("<f", 1)),
        ("matrix:e/0/weighted_outputs", "f32", [1], struct.pack("<f", 1)),
        ("matrix:e/0/energy", "f64", [], struct.pack("<d", 1)),
    ]
    measured = statistics(
        matrices=[MOMENTS, *others], settings={"window": 8}, provenance={"text": bytes(32)}
    )
    yield "statistics", archive([*SUMS, *more], measured, kind="statistics")

    def newer(manifest: Plain) -> None:
        manifest["later"] = 1
        manifest["document"]["later"] = 1

    yield "newer-minor", archive(edit=newer, header={"minor": 7, "reserved": b"\x01" * 64})


def _one_of_each() -> Iterator[forge.Section]:
    """A section of each element type; a type of codes has three elements, 1, 2 and 3."""
    for bits in range(1, 17):
        word = sum(((i + 1) & ((1 << bits) - 1)) << (bits * i) for i in range(3))
        data = word.to_bytes((3 * bits + 7) // 8, "little")
        yield f"matrix:up/codes{bits}", f"b{bits}", [3], data
    widths = {1: "bool u8 i8 f8_e4m3 f8_e5m2", 2: "u16 i16 f16 bf16", 4: "u32 i32 f32"}
    widths[8] = "u64 i64 f64"
    for width, words in widths.items():
        for dtype in words.split():
            yield f"tensor:{dtype}", dtype, [2], bytes([0, 1] * width)


def rejected() -> Iterator[tuple[str, str, bytes, str]]:
    """Rule, name, bytes, and whether `open` or `verify` finds it."""
    for rule, name, data in _bad_headers():
        yield rule, name, data, "open"
    for rule, name, encoded in _bad_encodings():
        yield rule, name, join(encoded, b""), "open"
    for rule, name, data in _bad_manifests():
        yield rule, name, data, "open"
    for rule, name, data in _bad_documents():
        yield rule, name, data, "open"
    for rule, name, data in _bad_adapters():
        yield rule, name, data, "open"
    for rule, name, data in _bad_decoders():
        yield rule, name, data, "open"
    for rule, name, data in _bad_statistics():
        yield rule, name, data, "open"
    yield from _bad_sections()


def _bad_headers() -> Iterator[tuple[str, str, bytes]]:
    good = archive([TEXT])
    yield "F2", "empty", b""
    yield "F2", "magic-only", good[:8]
    yield "F2", "half-a-header", good[:127]
    yield "H1", "crlf-to-lf", good.replace(b"\r\n", b"\n")
    yield "H1", "lf-to-crlf", good.replace(b"\n", b"\r\n")
    yield "H1", "seven-bit", bytes(byte & 0x7F for byte in good)
    yield "H1", "recoded", good[:128].decode("latin-1").encode("utf-8")
    yield "H1", "never-finished", bytes(192)
    yield "H1", "gguf", b"GGUF" + bytes(124)
    yield "H1", "safetensors", struct.pack("<Q", 120) + b'{"w":{"dtype":"F32"' + b" " * 101
    yield "H1", "zip", b"PK\x03\x04" + bytes(124)
    yield "H1", "pickle", b"\x80\x04\x95" + bytes(125)
    yield "H1", "web-page", b"\n<!DOCTYPE html><title>Sign in</title>"
    yield "H1", "lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "H2", "major-0", archive(header={"major": 0})
    yield "H2", "major-2", archive(header={"major": 2})
    yield "H2", "big-endian", archive(header={"major": 256})
    yield "H3", "header-0", archive(header={"header_bytes": 0})
    yield "H3", "header-192", archive(header={"header_bytes": 192})
    yield "H4", "cut-short", good[:-1]
    yield "H4", "tail", good + b"\0"
    yield "H4", "huge", archive(header={"file_bytes": (1 << 64) - 1})
    yield "H5", "no-manifest", archive(header={"manifest_bytes": 0})
    yield "H5", "past-the-end", archive(header={"manifest_bytes": len(archive())})
    yield "H5", "huge", archive(header={"manifest_bytes": (1 << 64) - 1})
    yield "H6", "reserved", archive(header={"reserved": bytes(63) + b"\x01"})
    yield "H7", "no-digest", archive(repair=False)
    yield "H7", "changed-manifest", archive().replace(b"model", b"modem")


def _bad_encodings() -> Iterator[tuple[str, str, bytes]]:
    """Manifests that are not canonical msgpack."""
    good = pack({"kind": "model", "features": [], "sections": [], "document": forge.MODEL})
    yield "C1", "cut-value", good[:-1]
    yield "C1", "trailing", good + b"\xc0"
    yield "C1", "array-of-4-billion", b"\xdd\xff\xff\xff\xff"
    yield "C1", "map-of-4-billion", b"\xdf\xff\xff\xff\xff"
    yield "C1", "text-of-4-gigabytes", b"\xdb\xff\xff\xff\xff"
    yield "C1", "bytes-of-4-gigabytes", b"\x81\xa1a\xc6\xff\xff\xff\xff"
    yield "C2", "long-integer", b"\xcc\x7f"
    yield "C2", "long-negative", b"\xd1\xff\x80"
    yield "C2", "positive-as-signed", b"\xd0\x01"
    yield "C2", "long-text", b"\xd9\x01a"
    yield "C2", "long-bytes", b"\xc5\x00\x01a"
    yield "C2", "long-array", b"\xdc\x00\x00"
    yield "C2", "long-map", b"\xde\x00\x00"
    yield "C2", "long-key", b"\x81\xd9\x01a\xc0"
    yield "C3", "unsorted", b"\x82\xa1b\xc0\xa1a\xc0"
    yield "C3", "integer-key", b"\x81\x01\xc0"
    yield "C3", "nil-key", b"\x81\xc0\xc0"
    yield "C4", "twice", b"\x82\xa1a\xc0\xa1a\xc0"
    yield "C5", "extension", b"\xd4\x01\x00"
    yield "C5", "timestamp", b"\xd6\xff\x00\x00\x00\x00"
    yield "C5", "float32", b"\xca\x00\x00\x00\x00"
    yield "C5", "never-used", b"\xc1"
    yield "C6", "nan", b"\xcb\x7f\xf8" + bytes(6)
    yield "C6", "infinity", b"\xcb\xff\xf0" + bytes(6)
    yield "C7", "latin-1", b"\xa1\xe9"
    yield "C7", "surrogate", b"\xa3\xed\xa0\x80"
    yield "C7", "key", b"\x81\xa1\xff\xc0"
    yield "C8", "deep-array", b"\x91" * 33 + b"\xc0"
    yield "C8", "deep-map", b"\x81\xa1a" * 32 + b"\x80"
    yield "C9", "too-many", b"\xdd" + struct.pack(">I", 88000) + b"\xc0" * 88000


def _bad_manifests() -> Iterator[tuple[str, str, bytes]]:
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
        "normalisation-alone": ("\u00e9.json", "e\u0301.json"),
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


def _bad_documents() -> Iterator[tuple[str, str, bytes]]:
    def file(*sections: forge.Section, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, model(**changes))

    def matrix(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**MATRIX, **changes}])

    bare = {key: value for key, value in forge.MODEL.items() if key != "ties"}
    yield "D1", "no-ties", archive(edit=lambda manifest: manifest.update(document=bare))
    yield "D1", "recipe-list", file(recipe=[])
    yield "D1", "method-text", file(methods=["nf4"])
    yield "D2", "row-text", file(matrices=["up"])
    yield "D2", "no-tensor", file(matrices=[{k: v for k, v in MATRIX.items() if k != "tensor"}])
    yield "D2", "name-number", matrix(name=1)
    yield "D2", "three-extents", matrix(shape=[1, 2, 3])
    yield "D2", "no-rows", matrix(shape=[0, 3])
    yield "D2", "codes-as-dtype", matrix(dtype="b3")
    yield "D2", "integers-as-dtype", matrix(dtype="i64")
    yield "D2", "negative-index", matrix(index=-1)
    yield "D2", "transposed-number", matrix(transposed=0)
    yield "D2", "no-such-method", matrix(method=1)
    yield "D2", "negative-error", matrix(relative_error=-0.5)
    yield "D2", "integer-error", matrix(relative_error=0)
    yield "D3", "name-twice", file(matrices=[MATRIX, {**MATRIX, "tensor": "x"}])
    yield "D3", "tensor-twice", file(matrices=[MATRIX, {**MATRIX, "name": "x"}])
    parts = [{**MATRIX, "index": 0}, {**MATRIX, "name": "x"}]
    yield "D3", "whole-and-part", file(matrices=parts)
    yield "D3", "kept-and-coded", file(("tensor:up.weight", "u8", [0], b""))
    yield "D4", "no-such-matrix", file(("matrix:down/codes", "b3", [0], b""))
    yield "D5", "codes-as-tensor", file(("tensor:x", "b3", [0], b""))
    yield "D5", "numbers-as-file", file(("file:x", "f32", [0], b""))
    yield "D5", "file-of-rank-2", file(("file:x", "u8", [0, 1], b""))
    yield "D6", "to-nothing", file(ties={"head.weight": "x"})
    yield "D6", "from-stored", file(KEPT, ties={"norm.weight": "up.weight"})
    yield "D6", "number", file(ties={"head.weight": 1})
    yield "D7", "float", file(provenance={"time": 1.5})
    yield "D7", "map", file(provenance={"host": {}})
    part, next_part = ({**MATRIX, "name": f"e.{i}", "tensor": "e", "index": i} for i in (0, 1))
    yield "D8", "unlike-shapes", file(matrices=[part, {**next_part, "shape": [3, 2]}])
    yield "D8", "unlike-types", file(matrices=[part, {**next_part, "dtype": "f32"}])
    yield "D8", "one-transposed", file(matrices=[part, {**next_part, "transposed": True}])
    yield "D8", "one-missing", file(matrices=[next_part])


def _bad_decoders() -> Iterator[tuple[str, str, bytes]]:
    def file(sections: list[forge.Section] = DECODER, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, decoder(**changes), kind="decoder")

    codes, scales, values = DECODER
    bare = {"structure": {}}
    yield "E1", "no-provenance", archive(DECODER, bare, kind="decoder")
    yield "E1", "structure-list", file(structure=[])
    yield "D7", "decoder-float", file(provenance={"time": 1.5})
    yield "M2", "decoder-one-key-more", file(later=1)
    yield "E1", "structure-text", file(structure="8x8")
    yield "E2", "no-sections", file([])
    yield "E2", "one-missing", file([codes, scales])
    yield "E2", "one-more", file([*DECODER, KEPT])
    yield "E2", "order", file([scales, codes, values])
    yield "E2", "numbers-as-codes", file([(codes[0], "u8", [3], bytes(3)), scales, values])
    yield "E2", "wide-codes", file([(codes[0], "b9", [2], b"\x01\x00\x00"), scales, values])
    yield "E2", "wide-scales", file([codes, (scales[0], "f32", [1], bytes(4)), values])
    yield "E2", "two-extents", file([codes, scales, (values[0], "f16", [1, 2], bytes(4))])
    yield "E2", "of-a-matrix", file([("matrix:up/decoder_codes", *codes[1:]), scales, values])


def _bad_adapters() -> Iterator[tuple[str, str, bytes]]:
    def file(sections: list[forge.Section] = PARTS, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, adapter(**changes), kind="adapter")

    def row(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**ROW, **changes}])

    bare = {key: value for key, value in adapter().items() if key != "settings"}
    yield "A1", "no-settings", archive(PARTS, bare, kind="adapter")
    yield "A1", "settings-list", file(settings=[])
    yield "A1", "matrices-map", file(matrices={})
    yield "A1", "model-document", archive([], forge.MODEL, kind="adapter")
    yield "A2", "short", file(base=bytes(31))
    yield "A2", "text", file(base="0" * 32)
    yield "A3", "row-text", file(matrices=["up"])
    yield "A3", "no-rank", file(matrices=[{k: v for k, v in ROW.items() if k != "rank"}])
    yield "A3", "rank-above", row(rank=3)
    yield "A3", "rank-negative", row(rank=-1)
    yield "A3", "rank-true", row(rank=True)
    yield "A3", "name-number", row(name=1)
    yield "A3", "one-extent", row(shape=[2])
    yield "A3", "no-columns", row(shape=[2, 0])
    yield "A3", "codes-as-dtype", row(dtype="b4")
    yield "A3", "gain-number", row(gain=1)
    yield "A3", "integer-error", row(rounding_error=0)
    yield "A3", "negative-error", row(rounding_error=-0.5)
    yield "A4", "twice", file(matrices=[ROW, ROW])
    yield "A5", "no-sections", file([])
    yield "A5", "one-missing", file(PARTS[:2])
    yield "A5", "order", file([PARTS[1], PARTS[0], PARTS[2]])
    yield "A5", "other-type", row(dtype="bf16")
    yield "A5", "other-rank", row(rank=2)
    yield "A5", "one-more", file([*PARTS, KEPT])
    yield "A5", "no-scales", row(dtype="i8")
    yield "D7", "adapter-float", file(provenance={"time": 1.5})
    yield "M2", "adapter-key", file(later=1)
    yield "M2", "adapter-row-key", row(later=1)


def _bad_statistics() -> Iterator[tuple[str, str, bytes]]:
    def file(sections: list[forge.Section] = SUMS, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, statistics(**changes), kind="statistics")

    def row(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**MOMENTS, **changes}])

    def second(**changes: Any) -> bytes:  # noqa: ANN401
        other = {**MOMENTS, "name": "gate", **changes}
        return file([*SUMS, *_renamed("gate")], matrices=[MOMENTS, other])

    bare = {key: value for key, value in statistics().items() if key != "tokens"}
    yield "T1", "no-tokens", archive(SUMS, bare, kind="statistics")
    yield "T1", "settings-list", file(settings=[])
    yield "T1", "matrices-map", file(matrices={})
    yield "T1", "provenance-list", file(provenance=[])
    yield "T1", "tokens-zero", file(tokens=0)
    yield "T1", "tokens-float", file(tokens=7.0)
    yield "T1", "tokens-above", file(tokens=(1 << 48) + 1)
    yield "T2", "row-text", file(matrices=["up"])
    yield "T2", "no-form", file(matrices=[{k: v for k, v in MOMENTS.items() if k != "input_form"}])
    yield "T2", "name-number", row(name=1)
    yield "S2", "statistics-inputs-escape", row(inputs="\x1b[2J")
    yield "T2", "one-extent", row(shape=[2])
    yield "T2", "no-columns", row(shape=[2, 0])
    yield "T2", "extent-true", row(shape=[2, True])
    yield "T2", "short-digest", row(sha256=bytes(31))
    yield "T2", "digest-text", row(sha256="0" * 32)
    yield "T2", "no-inputs-form", row(input_form="none")
    yield "T2", "output-form-number", row(output_form=1)
    yield "T3", "twice", file(matrices=[MOMENTS, MOMENTS])
    yield "T4", "of-nothing", row(inputs="down")
    yield "T4", "of-a-later-one", file(matrices=[{**MOMENTS, "name": "a"}, MOMENTS])
    yield (
        "T4",
        "of-one-that-shares",
        file(matrices=[MOMENTS, {**MOMENTS, "name": "b"}, {**MOMENTS, "name": "c", "inputs": "b"}]),
    )
    yield "T4", "other-width", second(inputs="up", shape=[2, 4])
    yield "T4", "other-form", second(inputs="up", input_form="diagonal")
    yield "T5", "no-sections", file([])
    yield "T5", "one-missing", file(SUMS[:-1])
    yield "T5", "order", file([SUMS[1], SUMS[0], *SUMS[2:]])
    yield "T5", "square", file([(SUMS[0][0], "f32", [9], bytes(36)), *SUMS[1:]])
    yield "T5", "other-type", file([(SUMS[0][0], "f64", [6], bytes(48)), *SUMS[1:]])
    yield "T5", "one-more", file([*SUMS, KEPT])
    yield "T5", "gradients-of-none", row(output_form="none")
    yield "T5", "inputs-of-one-that-shares", second(inputs="up")
    yield "D7", "statistics-float", file(provenance={"time": 1.5})
    yield "M2", "statistics-key", file(later=1)
    yield "M2", "statistics-row-key", row(later=1)


def _renamed(name: str) -> list[forge.Section]:
    """The sections of another matrix that stores its own inputs."""
    return [(section.replace(":up/", f":{name}/"), *rest) for section, *rest in SUMS]  # type: ignore[misc]


def _bad_sections() -> Iterator[tuple[str, str, bytes, str]]:
    """Files whose structure is right and whose bytes are not."""
    good = bytearray(archive([TEXT, KEPT]))
    good[-1] ^= 1
    yield "S9", "changed", bytes(good), "verify"
    yield "S11", "spare-bits", archive([(*CODES[:3], b"\x88\xc6\x05")], model()), "verify"
    padded = bytearray(archive([TEXT, KEPT]))
    padded[-9] = 1
    yield "S12", "padding", bytes(padded), "verify"


def plain_json(value: object) -> Any:  # noqa: ANN401 (plain data)
    """Plain data as JSON can hold it: bytes as `{"hex": ...}`."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return value


def build() -> dict[str, bytes]:
    """Every file of this folder by its path, cases.json included."""
    import msgpack

    files: dict[str, bytes] = {}
    cases: Plain = {"accepted": [], "rejected": [], "untestable": UNTESTABLE}
    for name, data in accepted():
        path = f"accepted/{name}.bin"
        files[path] = data
        major, minor, _, length = struct.unpack_from("<HHIQ", data, 8)
        manifest = msgpack.unpackb(data[128 : 128 + length])
        normal = {
            "major": major,
            "minor": minor,
            "manifest_bytes": length,
            "file_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "manifest": plain_json(manifest),
        }
        cases["accepted"].append({"file": path, "normal": normal})
    for rule, name, data, found in rejected():
        path = f"rejected/{rule}-{name}.bin"
        files[path] = data
        cases["rejected"].append({"file": path, "rule": rule, "found": found})
    files["cases.json"] = (json.dumps(cases, indent=1, sort_keys=True) + "\n").encode()
    return files


def main() -> None:
    """Write the files, or say what would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the files of this folder")
    write = parser.parse_args().write
    files = build()
    for path, data in files.items():
        target = HERE / path
        if write:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    total = sum(map(len, files.values()))
    verb = "written" if write else "not written (give --write)"
    print(f"{len(files)} files, {total} bytes: {verb}")


if __name__ == "__main__":
    main()
