"""Value rules: what the numbers of a section may be, as its size law says how many there are.

A size law names the value rule of each section that it lists, so a new kind brings both in one
file. Codes of b bits need none where every one of the 2^b has a meaning. Checking works on the
stored bytes, in pieces, without torch; it takes time and memory linear in the section.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reallm_formats.dtypes import BITS, CODES

if TYPE_CHECKING:
    import numpy as np

PIECE = 1 << 20
"""Elements that are checked in one step, about."""

_FLOATS = {
    "f8_e4m3": ("u1", 0x7F),
    "f8_e5m2": ("u1", 0x7C),
    "f16": ("<u2", 0x7C00),
    "bf16": ("<u2", 0x7F80),
    "f32": ("<u4", 0x7F80_0000),
    "f64": ("<u8", 0x7FF0_0000_0000_0000),
}
"""By type: its bits as an unsigned integer, and the least magnitude that is not finite."""


class ValueRule(Protocol):
    """What the elements of a section may be."""

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """What is wrong with a section's bytes, without its name; None if nothing is.

        Args:
            data: the section, as long as type and shape say.
            dtype: its element type, a name of the container.
            shape: its extents.
        """
        ...


@dataclass(frozen=True, slots=True)
class Anything:
    """Every value has a meaning."""

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class Finite:
    """Floats are finite numbers; integers and codes always are.

    Attributes:
        negative: whether they may be below zero.
        zero: whether they may be zero.
    """

    negative: bool = True
    zero: bool = True

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """The first element that is not finite, or is negative or zero where none may be."""
        if dtype not in _FLOATS:
            return None
        import numpy as np

        unsigned, infinite = _FLOATS[dtype]
        sign = 1 << (BITS[dtype] - 1)
        bits = np.frombuffer(data, dtype=unsigned)
        for first in range(0, len(bits), PIECE):
            piece = bits[first : first + PIECE]
            wrong = (piece & (sign - 1)) >= infinite
            if wrong.any():
                return f"element {first + int(wrong.argmax())} is not a finite number"
            below = piece > sign  # and not the zero with a sign
            if not self.negative and below.any():
                return f"element {first + int(below.argmax())} is negative"
            nothing = (piece & (sign - 1)) == 0
            if not self.zero and nothing.any():
                return f"element {first + int(nothing.argmax())} is zero"
        return None


@dataclass(frozen=True, slots=True)
class Triangle:
    """Floats [n (n + 1) / 2], the lower triangle of a symmetric matrix row by row: all are finite,
    and none on the diagonal is negative.
    """

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """The first element that is not finite, or the first of the diagonal below zero."""
        found = Finite().problem(data, dtype, shape)
        if found is not None:
            return found
        import numpy as np

        extent = (math.isqrt(8 * shape[0] + 1) - 1) // 2
        row = np.arange(extent, dtype=np.int64)
        values = np.frombuffer(data, dtype=_FLOATS[dtype][0])
        below = values[row * (row + 3) // 2] > 1 << (BITS[dtype] - 1)
        if below.any():
            return f"element {int(below.argmax())} of the diagonal is negative"
        return None


@dataclass(frozen=True, slots=True)
class Tally:
    """Two integers, of which the second counts a part of what the first counts."""

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """Both, where the part is larger."""
        import numpy as np

        whole, part = np.frombuffer(data, dtype="<u8")
        return None if part <= whole else f"{part} of {whole} tokens were left out"


@dataclass(frozen=True, slots=True)
class Order:
    """Codes [blocks, n]: each row holds every number from 0 to n - 1 once."""

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """The first row that is no permutation."""
        import numpy as np

        _, count = shape
        for first, rows in code_rows(data, CODES[dtype], *shape):
            seen = np.zeros((len(rows), count), dtype=bool)
            lane, column = (rows < count).nonzero()
            seen[lane, rows[lane, column]] = True
            whole = seen.all(axis=1)
            if not whole.all():
                row = int(whole.argmin())
                missing = int(seen[row].argmin())
                what = f"is not a permutation of {count} numbers: {missing} is missing"
                return f"row {first + row} {what}"
        return None


@dataclass(frozen=True, slots=True)
class Ones:
    """A mask of type `b1` in which so many bits are set.

    Attributes:
        count: how many.
    """

    count: int

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """How many there are instead."""
        found = sum(
            int.from_bytes(data[first : first + PIECE], "little").bit_count()
            for first in range(0, len(data), PIECE)
        )
        return None if found == self.count else f"{found} bits are set where {self.count} must be"


def code_rows(
    data: memoryview, bits: int, rows: int, columns: int
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """(first row, codes [rows, columns]) of a stream of codes, some rows at a time."""
    import numpy as np

    stream = np.frombuffer(data, dtype=np.uint8)
    weights = 1 << np.arange(bits, dtype=np.int64)
    row_bits = bits * columns
    # Eight rows of any width fill whole bytes.
    step = 8 * max(1, PIECE // (8 * row_bits))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        piece = stream[first * row_bits // 8 : -(-(first + count) * row_bits // 8)]
        flat = np.unpackbits(piece, bitorder="little", count=count * row_bits)
        yield first, flat.reshape(count, columns, bits) @ weights
