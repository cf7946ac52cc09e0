"""The sections and documents that the vectors are made of."""

from __future__ import annotations

import struct
from typing import Any

from vectors import forge
from vectors.forge import Plain

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
    "column_gain": False,
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


def model(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """A document with one matrix."""
    return {**forge.MODEL, "methods": [{}], "matrices": [MATRIX], **changes}


def adapter(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of an adapter of one matrix."""
    base = bytes(range(32))
    empty: Plain = {"provenance": {}, "replaced": [], "settings": {}}
    return {"base": base, "matrices": [ROW], **empty, **changes}


def decoder(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of a decoder."""
    structure = {"patch": [8, 8], "latent": [1, 4, 4], "width": 1, "decoder_bits": 6}
    return {"provenance": {"reallm": "0.1.0"}, "structure": structure, **changes}


def statistics(**changes: Any) -> Plain:  # noqa: ANN401 (plain data)
    """The document of statistics of one matrix."""
    return {"matrices": [MOMENTS], "provenance": {}, "settings": {}, "tokens": 7, **changes}
