"""Bits and bytes are integers; a rate in bits per weight is a fraction.

No float takes part in a budget: a float appears only where a number is shown.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction


def ceil_div(numerator: int, denominator: int) -> int:
    """The least integer not below numerator / denominator, for a positive denominator."""
    return -(-numerator // denominator)


def bytes_of_bits(bits: int) -> int:
    """Bytes that hold `bits` bits when the last byte is padded."""
    return ceil_div(bits, 8)


def index_bits(count: int) -> int:
    """Bits of an index into `count` values, ceil(log2 count), and at least 1."""
    return max(1, (count - 1).bit_length())


def bits_per_weight(nbytes: int, numel: int) -> Fraction:
    """The rate 8 x bytes / weights; 0 for no weights."""
    return Fraction(8 * nbytes, numel) if numel else Fraction(0)


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` as `parts` integers that differ by at most one and add up to it."""
    share, rest = divmod(total, parts)
    return [share + (1 if index < rest else 0) for index in range(parts)]


_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?([A-Za-z]*)", re.ASCII)
_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{infix}B": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefixes in enumerate(("kK", "M", "G", "T"), 1)
    for prefix in prefixes
}


def parse_bytes(text: str) -> int:
    """The bytes that a size such as `3.2GB`, `800 MiB` or `123456` means, rounded down.

    Raises:
        ValueError: it is no size, or one of no byte.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS:
        short = text if len(text) <= 60 else f"{text[:57]}..."
        raise ValueError(
            f"expected a size such as `3.2GB`, `800MiB` or a number of bytes, got `{short}`"
        )
    size = math.floor(Fraction(found[1]) * _UNITS[found[2]])
    if not 0 < size < 1 << 63:
        raise ValueError(f"a size is at least one byte and below 2^63, not `{text.strip()}`")
    return size
