"""Stored orders of the columns and the rows of a latent, whatever they were chosen by.

Stored is, for each column, its position in the coded latent, so that decoding is one gather:
latent[:, j] = coded[:, order[j]]. So is the position of each row; where rows are in order too,
blocks of rows that share an order of the columns are blocks of the coded latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ColumnOrder, PermutationCodec, Shape
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import PermutationStage
from reallm_compiler.storage.orders import COLUMNS, ROWS, row_blocks
from reallm_compiler.units import index_bits


class StoredOrder(ColumnOrder):
    """Orders of columns and rows.

    Args:
        size: rows that share one order of the columns, or `all`.
        columns: int64 [blocks, q], the position of each column in the coded latent; None if
            columns stay.
        rows: int64 [p], the position of each row; None if rows stay.
    """

    def __init__(
        self, size: int | str, *, columns: Tensor | None = None, rows: Tensor | None = None
    ) -> None:
        self._size = size
        self._columns = columns
        self._rows = rows
        self.rows = None if rows is None else rows.argsort()

    def sections(self) -> Sections:
        """The packed positions."""
        given = {COLUMNS: self._columns, ROWS: self._rows}
        return {
            role: pack(positions, index_bits(positions.shape[-1]))
            for role, positions in given.items()
            if positions is not None
        }

    def permute(self, latent: Tensor) -> Tensor:
        """The latent [p, q] in the order that is coded."""
        if self.rows is not None:
            latent = latent.index_select(0, self.rows)
        if self._columns is None:
            return latent
        coded = torch.empty_like(latent)
        for block, rows in self._blocks(0, len(latent)):
            coded[rows] = latent[rows].index_select(1, self._columns[block].argsort())
        return coded

    def restore(self, rows: Tensor, first: int) -> Tensor:
        """Decoded rows [n, q], from row `first` on, with columns and rows back; all rows, if these
        are in order.
        """
        if self._columns is not None:
            result = torch.empty_like(rows)
            for block, span in self._blocks(first, len(rows)):
                result[span] = rows[span].index_select(1, self._columns[block])
            rows = result
        return rows if self._rows is None else rows.index_select(0, self._rows)

    def coded(self, first: int) -> tuple[Tensor | None, int | None]:
        """The columns of coded row `first` in the coded order, and where the next order begins."""
        if self._columns is None:
            return None, None
        if isinstance(self._size, str):
            return self._columns[0].argsort(), None
        block = first // self._size
        last = None if block + 1 == len(self._columns) else (block + 1) * self._size
        return self._columns[block].argsort(), last

    def _blocks(self, first: int, count: int) -> Iterator[tuple[int, slice]]:
        """(block, its rows of the `count` ones from row `first` on)."""
        if isinstance(self._size, str):
            yield 0, slice(0, count)
            return
        start = 0
        while start < count:
            block = (first + start) // self._size
            stop = min((block + 1) * self._size - first, count)
            yield block, slice(start, stop)
            start = stop


O = TypeVar("O", bound=PermutationStage)  # noqa: E741 - order


class OrderCodec(PermutationCodec[O]):
    """The codec of a kind that stores orders; its `rows` say how many rows share one of columns."""

    def decoder(self, params: O, shape: Shape, sections: Mapping[str, Tensor]) -> StoredOrder:
        """The stored orders of a latent [p, q].

        Raises:
            CodecError: a position lies outside the latent.
        """
        (p, q), size = shape, cast(OrderedRows, params).rows
        columns = rows = None
        if COLUMNS in sections:
            columns = _positions(sections[COLUMNS], row_blocks(size, p), q, "column")
        if ROWS in sections:
            rows = _positions(sections[ROWS], 1, p, "row")[0]
        return StoredOrder(size, columns=columns, rows=rows)


class OrderedRows(Protocol):
    """Parameters of a kind that stores orders."""

    @property
    def rows(self) -> int | str:
        """Rows that share one order of the columns, or `all`."""
        ...


def positions_of(visits: Tensor) -> Tensor:
    """The inverse of each order [..., n]: from what comes when to the position of each."""
    count = torch.arange(visits.shape[-1], device=visits.device)
    return torch.empty_like(visits).scatter_(-1, visits, count.expand_as(visits))


def _positions(packed: Tensor, blocks: int, count: int, what: str) -> Tensor:
    """int64 [blocks, count]."""
    positions = unpack(packed, index_bits(count), blocks * count).view(blocks, count)
    if int(positions.max()) >= count:
        raise CodecError(f"the {what} order names position {int(positions.max())} of {count}")
    return positions.to(torch.int64)
