"""Numbers as people read them; exact until the last step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

DECIMALS = 6
"""Decimals of a rate in bits per weight: enough for one codebook of a large matrix."""


def grouped(count: int) -> str:
    """An integer with its thousands apart, such as 6,476,005,376."""
    return f"{count:,}"


def bits_column(rates: Iterable[Fraction]) -> list[str]:
    """Rates with as many decimals as the one that needs most of them, six at most."""
    scaled = [_scaled(rate) for rate in rates]
    decimals = DECIMALS
    while decimals > 0 and all(value % 10 ** (DECIMALS - decimals + 1) == 0 for value in scaled):
        decimals -= 1
    return [_fixed(value, decimals) for value in scaled]


def _scaled(rate: Fraction) -> int:
    """`round(rate * 10**DECIMALS)` in plain integers, for tables of a thousand rows."""
    scale: int = 10**DECIMALS
    whole, rest = divmod(rate.numerator * scale, rate.denominator)
    twice = 2 * rest
    up = twice > rate.denominator or (twice == rate.denominator and whole % 2 == 1)
    return whole + up


def bits_text(rate: Fraction) -> str:
    """One rate, with no more decimals than it needs."""
    return bits_column([rate])[0]


def _fixed(scaled: int, decimals: int) -> str:
    whole, rest = divmod(scaled, 10**DECIMALS)
    return f"{whole}.{rest:06d}"[: -(DECIMALS - decimals) or None] if decimals else str(whole)


def size_text(count: int) -> str:
    """Bytes for people: `3.9 MB`; below a thousand the plain number."""
    if count < 1000:
        return f"{count} bytes"
    units = ("kB", "MB", "GB", "TB")
    step = min(len(units), (len(str(count)) - 1) // 3)
    return f"{count / 1000**step:.1f} {units[step - 1]}"


def amount_text(count: int, unit: str) -> str:
    """A large count in three digits: `7.47 TMAC`."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    step = min(len(prefixes) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**step:.3g} {prefixes[step]}{unit}"


def error_text(value: float | None) -> str:
    """A relative error: four digits after the point, or the mark for unknown."""
    if value is None:
        return "-"
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:.4f}"


def share_text(part: int, whole: int) -> str:
    """`part` of `whole` in percent."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def rate_text(per_second: float) -> str:
    """A speed in weights per second."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_second >= limit:
            return f"{per_second / limit:.1f}{unit} weights/s"
    return f"{per_second:.0f} weights/s"


def duration_text(seconds: float) -> str:
    """A duration: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 matrix`, `2 matrices`."""
    return f"{grouped(count)} {one if count == 1 else many or one + 's'}"
