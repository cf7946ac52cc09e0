"""How packed codes are read: data that a kernel is written from, known before any weight is.

The codes of all quantizers that have such a form are read in one way. A line of codes is a stream
of bits, least significant first, that begins at a whole byte. Code i ends `widths[i mod period]`
bits after the one before it, and is looked up by the `window` last bits up to its end, zeros
before the line. A window stands for `dim` weights: of consecutive rows in one column, or of
consecutive columns in one row. Scales lie in arrays of one or two levels.
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
    """

    window: int
    widths: tuple[int, ...]
    dim: int = 1
    axis: Literal["rows", "cols"] = "rows"
    planes: int = 1
    identity: bool = False
    computed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleArrays:
    """How scales, and zero points where there are any, are stored.

    Attributes:
        per: which weights share a scale: `tensor`, `row`, `column` or `block`.
        block: consecutive weights of a row in a block.
        dtype: stored type of the scales, or of the super-scales, a name of the container.
        bits: of the codes of a second level; None for one level.
        superblock: scales that share a super-scale.
        zeros: there are zero points, stored in the same way.
    """

    per: str
    block: int
    dtype: str
    bits: int | None
    superblock: int
    zeros: bool
