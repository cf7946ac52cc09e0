"""Constants of version 1 of the container; SPEC.md gives the reason of each.

Numbers and names that were released once are never given another meaning: a retired one stays
here as a comment.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"\x89RLM\r\n\x1a\n"
"""First bytes of every archive. Any transfer that treats the file as text changes them."""

MAJOR: Final = 1
MINOR: Final = 0

HEADER: Final = struct.Struct("<8sHHIQQ32s64s")
"""magic, major, minor, header bytes, manifest bytes, file bytes, digest, reserved zeros."""

HEADER_BYTES: Final = 128
DIGEST_BYTES: Final = 32
"""Length of a SHA-256, in the header and in the section table."""

DIGEST_OFFSET: Final = 32
"""Where the digest stands in the header."""

ALIGNMENT: Final = 64
"""Sections start at multiples of this many bytes."""

FEATURES: Final[frozenset[str]] = frozenset()
"""Required features that this reader knows; version 1.0 has none yet."""

# Limits. Each is checked before anything is allocated for the thing it bounds.
MAX_MANIFEST_BYTES: Final = 1 << 28
MAX_FILE_BYTES: Final = (1 << 63) - 1
MAX_SECTIONS: Final = 1 << 20
MAX_NAME_BYTES: Final = 512
MAX_PART_BYTES: Final = 255
MAX_FEATURE_BYTES: Final = 64
MAX_RANK: Final = 8
MAX_EXTENT: Final = 1 << 48
MAX_SECTION_BITS: Final = (1 << 63) - 1
MAX_DEPTH: Final = 32
FREE_VALUES: Final = 1 << 16
"""Values that any manifest may hold, however short it is."""

BYTES_PER_VALUE: Final = 4
"""Above `FREE_VALUES`, a manifest has one more value for each of so many bytes at most."""


def align(offset: int) -> int:
    """The first multiple of `ALIGNMENT` that is not below `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def value_limit(manifest_bytes: int) -> int:
    """How many values a manifest of this length may hold (rule C9)."""
    return FREE_VALUES + manifest_bytes // BYTES_PER_VALUE
