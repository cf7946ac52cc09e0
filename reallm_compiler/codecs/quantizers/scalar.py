"""What the quantizers of single weights share: levels, codes, and fast ways between them.

Codes of 1, 2, 4 or 8 bits are looked up a byte at a time: a table with one row for each byte
holds the levels of all its codes, so a 2-bit code costs a quarter of a look-up. Large matrices of
narrow codes have a faster way still, `kernel`, where its library is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import RowDecoder
from reallm_compiler.codecs.numerics import kernel
from reallm_compiler.codecs.numerics.packing import pack, rows_per_byte, unpack
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.units import bytes_of_bits

BLOCK = 1 << 16
"""Weights that are coded in one step, so that intermediates stay in cache."""

MOST_CELLS = 1 << 16
"""Cells of the grid of `nearest_levels`, at most."""


class LevelCoder(ColumnCoder):
    """Codes of single weights, each by itself.

    Args:
        values: the latent [p, q], whose shape and device are meant.
        levels: the levels [2^bits].
        bits: width of a code.
        nearest: values -> codes, uint8 of their shape.
    """

    trials = 8

    def __init__(
        self, values: Tensor, levels: Tensor, bits: int, nearest: Callable[[Tensor], Tensor]
    ) -> None:
        self._shape = values.shape
        self._levels = levels
        self._bits = bits
        self._nearest = nearest
        self._codes: Tensor | None = None

    def quantize(
        self, block: Tensor, columns: slice, *, rows: slice = slice(None), decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, m], and the levels."""
        codes = self._nearest(block)
        if codes.shape == self._shape:
            self._codes = codes
        else:
            if self._codes is None:  # columns lie together: they come one by one
                p, q = self._shape
                self._codes = torch.empty(q, p, dtype=torch.uint8, device=block.device).t()
            self._codes[rows, columns] = codes
        if not decode:
            return codes, None
        self._levels = self._levels.to(block.device, block.dtype)
        indices = codes.to(torch.int32).reshape(-1)
        return codes, self._levels.index_select(0, indices).view(codes.shape)

    def nearest(self, block: Tensor, columns: slice, *, rows: slice = slice(None)) -> Tensor:
        """The nearest levels."""
        indices = self._nearest(block).to(torch.int32).reshape(-1)
        self._levels = self._levels.to(block.device, block.dtype)
        return self._levels.index_select(0, indices).view(block.shape)

    def sections(self) -> Sections:
        """The packed codes."""
        if self._codes is None:
            raise CodecError("no column was coded")
        return {"codes": pack(self._codes, self._bits)}


class TableDecoder(RowDecoder):
    """Rows of codes that index a table of levels.

    Args:
        levels: the levels [2^bits], in the precision of the work.
        codes: the packed codes of a latent [p, q].
        bits: width of a code.
        shape: p and q.

    Attributes:
        levels, bits: as given.
    """

    def __init__(self, levels: Tensor, codes: Tensor, bits: int, shape: tuple[int, int]) -> None:
        self.step = rows_per_byte(shape[1] * bits)
        self.bits = bits
        self.levels = levels
        self._codes = codes
        self._shape = shape
        self._columns = shape[1]

    def codes(self) -> Tensor:
        """uint8 [p, q]: the codes of all weights."""
        count = self._shape[0] * self._shape[1]
        return unpack(self._codes, self.bits, count).view(self._shape)

    @cached_property
    def _wide(self) -> Tensor | None:
        """The table by bytes; made when it is needed, as `fill` may do without."""
        return byte_table(self.levels[:, None], self.bits) if 8 % self.bits == 0 else None

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        count = (last - first) * self._columns
        start = first * self._columns * self.bits // 8
        data = self._codes[start : start + bytes_of_bits(count * self.bits)]
        if self._wide is not None:
            values = look_up(self._wide, data)
        else:
            values = look_up(self.levels[:, None], unpack(data, self.bits, count))
        return values.view(-1)[:count].view(last - first, self._columns)

    def fill(self, out: Tensor, first: int, scales: ScaleField | None) -> bool:
        """Rows first, first + 1, ... of the latent, scaled, into `out` [n, q] by the compiled way.

        Returns:
            False, and nothing is done, where there is no such way (see `kernel`).
        """
        if scales is None or self._codes.numel() * 8 < kernel.LEAST * self.bits:
            return False
        if not kernel.fits(self.bits, scales.run(), out):
            return False
        start = first * self._columns * self.bits // 8
        data = self._codes[start : start + bytes_of_bits(out.numel() * self.bits)]
        tables = scales.tables(self.levels, first, first + len(out))
        kernel.look_up(tables.to(out.dtype), data, self.bits, out)
        return True


def byte_table(entries: Tensor, bits: int) -> Tensor:
    """Entries for a whole byte of codes.

    Args:
        entries: [2^bits, n], what each code stands for; bits divides 8.
        bits: width of a code.

    Returns:
        [256, 8 / bits x n]: for each byte the entries of its codes, lowest code first.
    """
    byte = torch.arange(256, device=entries.device)
    shifted = [(byte >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.cat([entries[codes] for codes in shifted], dim=1)


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """table[codes]: [codes, n] from a table [entries, n].

    Rows of 8 or 16 bytes are moved as single elements: torch looks up elements several times
    faster than rows.
    """
    width = table.shape[1] * table.element_size()
    whole = {8: torch.int64, 16: torch.complex128}.get(width)
    index = codes.reshape(-1)
    # A conversion to int64 is the fast one of the two that torch offers for look-ups.
    index = index.to(torch.int64)
    if table.shape[1] == 1:
        return torch.index_select(table.view(-1), 0, index)[:, None]
    if whole is None or table.device.type != "cpu" or table.requires_grad:
        return torch.index_select(table, 0, index)
    flat = table.contiguous().view(whole).view(-1)
    return torch.index_select(flat, 0, index).view(table.dtype).view(-1, table.shape[1])


def nearest_levels(values: Tensor, levels: Tensor) -> Tensor:
    """Places of the nearest levels; a tie goes to the lower level.

    The same as `torch.bucketize(values, midpoints)`, several times faster: a fine even grid is
    laid over the midpoints, such that no cell holds two of them; a table names the level at a
    cell's start, and one comparison with the cell's own midpoint decides.

    Args:
        values: finite, of any shape.
        levels: ascending levels [n], n from 2 to 65536, float64 or the type of `values`.

    Returns:
        int64, of the shape of `values`.
    """
    middle = ((levels[1:] + levels[:-1]) / 2).to(values.dtype)
    low, high = float(middle[0]), float(middle[-1])
    gap = float((middle[1:] - middle[:-1]).min()) if len(middle) > 1 else 1.0
    cells = int(2 * (high - low) / gap) + 2 if gap > 0 else MOST_CELLS + 1
    if cells > MOST_CELLS:
        return torch.bucketize(values, middle)
    factor = cells / (high - low) if high > low else 1.0

    def cell(x: Tensor) -> Tensor:
        # Monotone in x, which is all that the comparison below relies on.
        return x.sub(low).mul_(factor).clamp_(-1, cells).add_(1).to(torch.int64)

    homes = cell(middle)
    if (homes[1:] == homes[:-1]).any():
        return torch.bucketize(values, middle)
    # By cell: the midpoints of lower cells, and the cell's own midpoint (or none: infinity).
    base = torch.bucketize(torch.arange(cells + 2, device=values.device), homes)
    own = torch.full((cells + 2,), torch.inf, dtype=values.dtype, device=values.device)
    own[homes] = middle
    flat = values.reshape(-1)
    result = torch.empty(flat.shape, dtype=torch.int64, device=values.device)
    for first in range(0, flat.numel(), BLOCK):
        x = flat[first : first + BLOCK]
        index = cell(x)
        above = x > torch.index_select(own, 0, index)
        torch.index_select(base, 0, index, out=result[first : first + BLOCK])
        result[first : first + BLOCK] += above
    return result.view(values.shape)


def level_codes(values: Tensor, levels: Tensor) -> Tensor:
    """Codes of the nearest of at most 256 levels, uint8, of the shape of `values`."""
    flat = values.reshape(-1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=values.device)
    for first in range(0, flat.numel(), 16 * BLOCK):
        part = flat[first : first + 16 * BLOCK]
        codes[first : first + 16 * BLOCK] = nearest_levels(part, levels)
    return codes.view(values.shape)


@lru_cache(maxsize=64)
def normal_reach(levels: tuple[float, ...]) -> float:
    """The factor a at which levels a l code standard normal values with the least squared error.

    Under scales by root mean squares levels that end at 1 would cut off all that lies above one
    deviation; scaled by this they reach as far as pays.

    Args:
        levels: ascending, at most 256.

    Returns:
        A multiple of 1/256, so that it does not hang on the last bits of a function.
    """
    table = torch.tensor(levels, dtype=torch.float64)
    factors = torch.arange(64, 2048, dtype=torch.float64)[:, None] / 256
    ends = torch.full_like(factors, torch.inf)
    cuts = torch.cat([-ends, factors * (table[1:] + table[:-1]) / 2, ends], dim=1)
    density = torch.exp(-cuts.square() / 2) / math.sqrt(2 * math.pi)
    probability = torch.special.ndtr(cuts).diff(dim=1)
    moment = -density.diff(dim=1)  # the integral of x between two cuts
    values = factors * table
    errors = (values.square() * probability - 2 * values * moment).sum(1)
    return float(factors[errors.argmin()])
