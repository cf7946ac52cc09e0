"""Column order by greedy nearest neighbours (paper, Algorithm 1), for blocks of rows.

Within a block, column 0 comes first; then always the unvisited column nearest to the last visited
one by Euclidean distance, the lowest index among equals. Algorithm 1 says "minimise the scalar
product", which would choose the most opposite column and make neighbours less alike than no
order at all; the nearest column is what its name and its purpose ask for.

Stored is, for each column, its position in the coded latent, so that decoding is one gather:
latent[:, j] = coded[:, order[j]]. Columns are followed by index, never by value: equal columns
cannot collide.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ColumnOrder, PermutationCodec, Shape
from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import NearestPermutation
from reallm_compiler.storage.nearest import DEVICE_BYTES, row_blocks
from reallm_compiler.units import index_bits

DISTANCE_BYTES = 128 << 20
"""Bytes of distances that may be held at once, or twice the latent's own if that is more."""


class NearestCodec(PermutationCodec[NearestPermutation]):
    """An order for each block of rows."""

    def encode(self, params: NearestPermutation, latent: Tensor) -> tuple[Sections, Tensor]:
        """The section of the orders of a latent [p, q], and the latent in that order."""
        positions = find_order(params, latent)
        sections = {"order": pack(positions, index_bits(latent.shape[1]))}
        return sections, permute(params, latent, positions)

    def decoder(
        self, params: NearestPermutation, shape: Shape, sections: Mapping[str, Tensor]
    ) -> NearestOrder:
        """The position of each column in the coded latent [p, q].

        Raises:
            CodecError: a position lies outside the latent.
        """
        p, q = shape
        blocks = row_blocks(params, p)
        positions = unpack(sections["order"], index_bits(q), blocks * q).view(blocks, q)
        if int(positions.max()) >= q:
            raise CodecError(f"the column order names position {int(positions.max())} of {q}")
        return NearestOrder(params, positions.to(torch.int64))


class NearestOrder(ColumnOrder):
    """Orders of the columns.

    Args:
        params: the stage.
        positions: int64 [blocks, q], the position of each column in the coded latent.
    """

    def __init__(self, params: NearestPermutation, positions: Tensor) -> None:
        self._params = params
        self._positions = positions

    def restore(self, rows: Tensor, first: int) -> Tensor:
        """Decoded rows [n, q], from row `first` on, with their columns back where they belong."""
        size = self._params.rows
        if size == "all":
            return rows.index_select(1, self._positions[0])
        result = torch.empty_like(rows)
        start = 0
        while start < len(rows):
            block = (first + start) // size
            stop = min((block + 1) * size - first, len(rows))
            result[start:stop] = rows[start:stop].index_select(1, self._positions[block])
            start = stop
        return result

    def coded(self, first: int) -> tuple[Tensor, int | None]:
        """The columns of row `first` in the coded order, and where the next order begins."""
        size = self._params.rows
        if size == "all":
            return self._positions[0].argsort(), None
        block = first // size
        last = None if block + 1 == len(self._positions) else (block + 1) * size
        return self._positions[block].argsort(), last


def find_order(params: NearestPermutation, latent: Tensor) -> Tensor:
    """int64 [blocks, q]: the position of each column of a latent [p, q] in the coded order."""
    p, q = latent.shape
    rows = p if params.rows == "all" else params.rows
    one = unit(latent)
    latent = latent if one == 1 else latent / one
    blocks = [latent[first : first + rows] for first in range(0, p, rows)]
    if latent.device.type == "cpu":
        budget = max(DISTANCE_BYTES, 2 * latent.numel() * latent.element_size())
        visits = torch.stack([torch.from_numpy(_visit(block, budget)) for block in blocks])
    else:
        visits = _visit_together(blocks)
    positions = torch.empty_like(visits)
    positions.scatter_(1, visits, torch.arange(q, device=visits.device).expand_as(visits))
    return positions


def permute(params: NearestPermutation, latent: Tensor, positions: Tensor) -> Tensor:
    """The latent [p, q] with its columns in the order that is coded."""
    p = latent.shape[0]
    rows = p if params.rows == "all" else params.rows
    coded = torch.empty_like(latent)
    for block, position in enumerate(positions):
        span = slice(block * rows, min((block + 1) * rows, p))
        coded[span] = latent[span].index_select(1, position.argsort())
    return coded


def _visit(block: Tensor, budget: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Columns of a block [n, q] in the order of the greedy walk, on the CPU.

    Distances from column i to all j are ranked by |x_j|^2 - 2 x_i . x_j: |x_i|^2 is the same for
    all. They come from one matrix product as far as `budget` bytes reach; the rows beyond are
    computed when the walk stands there, and once so few columns are left that all their
    distances fit, these are computed again for them alone.
    """
    columns = block.t().contiguous()  # [q, n]
    q = len(columns)
    remaining = np.arange(q)
    order = np.empty(q, dtype=np.int64)
    visited, current = 0, 0
    while visited < q:
        count = len(remaining)
        kept = min(count, max(1, budget // (columns.element_size() * count)))
        # Walk until all distances among the rest fit, or to the end if they do already.
        rest = 0 if kept == count else int((budget // columns.element_size()) ** 0.5)
        norms = columns.square().sum(1)
        table = torch.addmm(norms[None, :], columns[:kept], columns.t(), alpha=-2).numpy()
        barred = np.zeros(count, dtype=table.dtype)
        scores = np.empty(count, dtype=table.dtype)
        left = count
        while True:
            order[visited] = remaining[current]
            visited += 1
            left -= 1
            barred[current] = np.inf
            if left <= rest:
                break
            if current < kept:
                row = table[current]
            else:
                row = torch.addmv(norms, columns, columns[current], alpha=-2).numpy()
            np.add(row, barred, out=scores)
            current = int(scores.argmin())
        if visited < q:
            # One more step from the last visited column, then only the unvisited ones. Two tables
            # would not fit, so this one goes first.
            del table
            row = torch.addmv(norms, columns, columns[current], alpha=-2).numpy()
            nearest = int((row + barred).argmin())
            free = np.flatnonzero(barred == 0)
            current = int(np.searchsorted(free, nearest))
            remaining = remaining[free]
            columns = columns[torch.from_numpy(free)]
    return order


def _visit_together(blocks: list[Tensor]) -> Tensor:
    """The walks of all blocks, int64 [blocks, q], on an accelerator: one step for many at once."""
    q = blocks[0].shape[1]
    size = q * q * blocks[0].element_size()
    together = max(1, DEVICE_BYTES // size)
    visits = []
    for first in range(0, len(blocks), together):
        batch = blocks[first : first + together]
        tables = torch.stack([_scores(block) for block in batch])  # [n, q, q]
        barred = tables.new_zeros(len(batch), q)
        lane = torch.arange(len(batch), device=tables.device)
        current = torch.zeros_like(lane)
        order = torch.empty(q, len(batch), dtype=torch.int64, device=tables.device)
        for position in range(q):
            order[position] = current
            barred[lane, current] = torch.inf
            current = (tables[lane, current] + barred).argmin(dim=1)
        visits.append(order.t())
    return torch.cat(visits)


def _scores(block: Tensor) -> Tensor:
    """[q, q]: |x_j|^2 - 2 x_i . x_j of the columns of a block [n, q]."""
    return torch.addmm(block.square().sum(0)[None, :], block.t(), block, alpha=-2)
