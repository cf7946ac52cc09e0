"""Hostile headers, encodings of the manifest, and bytes of sections."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vectors import forge
from vectors.forge import archive, pack
from vectors.samples import CODES, KEPT, TEXT, model


def headers() -> Iterator[tuple[str, str, bytes]]:
    """First bytes and headers, rules F, H."""
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


def encodings() -> Iterator[tuple[str, str, bytes]]:
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


def sections() -> Iterator[tuple[str, str, bytes, str]]:
    """Files whose structure is right and whose bytes are not."""
    good = bytearray(archive([TEXT, KEPT]))
    good[-1] ^= 1
    yield "S9", "changed", bytes(good), "verify"
    yield "S11", "spare-bits", archive([(*CODES[:3], b"\x88\xc6\x05")], model()), "verify"
    padded = bytearray(archive([TEXT, KEPT]))
    padded[-9] = 1
    yield "S12", "padding", bytes(padded), "verify"
