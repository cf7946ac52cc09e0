"""How packed codes are read: data that a kernel is written from, known before any weight is.

The codes of all quantizers that have such a form are read in one way. A line of codes is a stream
of bits, least significant first, that begins at a whole byte. Code i ends `widths[i mod period]`
bits after the one before it, and is looked up by the `window` last bits up to its end, zeros
before the line. A window stands for `dim` weights: of consecutive rows in one column, or of
consecutive columns in one row. Several codes in a row may stand for the same weights, and so may
those of another section: what they stand for is added up. Scales lie in arrays of one or two
levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeWindows:
    """How the codes of a latent are read.

    Attributes:
        window: bits that a code is looked up by, 1 to 16.
        widths: bits that each code advances, over one period; it repeats.
        dim: weights that a window stands for.
        axis: whether these are of consecutive `rows` or columns (`cols`).
        planes: int8 numbers that make up an entry of the table: 1 where entries are stored as
            int8; 2 for others, entry = 254 high + low.
        identity: there is no table; a window w stands for the entry w - 2^(window - 1).
        computed: entries are computed from windows: a kernel may do that instead of looking up.
        books: codes that stand for the same weights, one after the other, each with its own table.
        section: that holds the codes.
        rest: further codes of the same weights, in another section.
    """

    window: int
    widths: tuple[int, ...]
    dim: int = 1
    axis: Literal["rows", "cols"] = "rows"
    planes: int = 1
    identity: bool = False
    computed: bool = False
    books: int = 1
    section: str = "codes"
    rest: CodeWindows | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberArray:
    """How an array of scales or of zero points is stored.

    Attributes:
        bits: of codes, packed one after the other; None for numbers.
        superblock: codes that share a super-scale; 0 for codes that are the numbers themselves.
    """

    bits: int | None = None
    superblock: int = 0

    @property
    def integers(self) -> bool:
        """Whether codes are the numbers themselves."""
        return self.bits is not None and not self.superblock


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleArrays:
    """How scales, and zero points where there are any, are stored.

    Attributes:
        per: which weights share a scale: `tensor`, `row`, `column` or `block`.
        block: consecutive weights of a row in a block.
        dtype: stored type of numbers and of super-scales, a name of the container.
        scales: the array of the scales s.
        zeros: the array of the zero points, which are added to weights; those that are integers z
            are meant as -s z. None without.
        zero: an integer z that all groups have without storing it.
        offset: codes count from one float32 for the whole `matrix`, or from a number of each
            `superblock`, of type `dtype`.
    """

    per: str
    block: int
    dtype: str
    scales: NumberArray
    zeros: NumberArray | None = None
    zero: int = 0
    offset: Literal["matrix", "superblock"] = "matrix"
