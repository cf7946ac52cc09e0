"""Bits and bytes are integers; a rate in bits per weight is a fraction.

No float takes part in a budget: a float appears only where a number is shown.
"""

from __future__ import annotations

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
