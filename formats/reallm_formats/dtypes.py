"""Element types of sections, and the size law that every section obeys.

A section of shape S and type t holds prod(S) elements of `BITS[t]` bits each, densely packed,
and takes ceil(prod(S) x bits / 8) bytes. Types `b1` ... `b16` are unsigned codes of that many
bits, packed without gaps, least significant bit first; all other types are whole bytes,
little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

CODES = {f"b{bits}": bits for bits in range(1, 17)}
NUMBERS = {
    "bool": 8,
    "u8": 8,
    "i8": 8,
    "u16": 16,
    "i16": 16,
    "u32": 32,
    "i32": 32,
    "u64": 64,
    "i64": 64,
    "f8_e4m3": 8,
    "f8_e5m2": 8,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
}
FLOATS = ("f8_e4m3", "f8_e5m2", "f16", "bf16", "f32", "f64")
BITS = MappingProxyType({**CODES, **NUMBERS})
"""Bits of one element, by type name."""


def section_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a section: ceil(prod(shape) x bits / 8).

    Args:
        dtype: a name in `BITS`.
        shape: the extents, each at least 0; `()` is one element.
    """
    return -(-math.prod(shape) * BITS[dtype] // 8)
