"""Column order by greedy nearest neighbours (paper, Algorithm 1), for blocks of rows.

Within a block, column 0 comes first; then always the unvisited column nearest to the last visited
one by Euclidean distance, the lowest index among equals. Algorithm 1 says "minimise the scalar
product", which would choose the most opposite column and make neighbours less alike than no
order at all; the nearest column is what its name and its purpose ask for.

Columns are followed by index, never by value: equal columns cannot collide.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.orders import OrderCodec, StoredOrder, positions_of
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import Metric
from reallm_compiler.stages import NearestPermutation
from reallm_compiler.storage.nearest import DEVICE_BYTES

DISTANCE_BYTES = 128 << 20
"""Bytes of distances that may be held at once, or twice the latent's own if that is more."""


class NearestCodec(OrderCodec[NearestPermutation]):
    """An order for each block of rows."""

    def encode(
        self, params: NearestPermutation, latent: Tensor, moments: Metric | None = None
    ) -> tuple[Sections, Tensor]:
        """The section of the orders of a latent [p, q], and the latent in that order."""
        order = StoredOrder(params.rows, columns=find_order(params, latent))
        return order.sections(), order.permute(latent)


def find_order(params: NearestPermutation, latent: Tensor) -> Tensor:
    """int64 [blocks, q]: the position of each column of a latent [p, q] in the coded order."""
    p = len(latent)
    rows = p if params.rows == "all" else params.rows
    one = unit(latent)
    latent = latent if one == 1 else latent / one
    blocks = [latent[first : first + rows] for first in range(0, p, rows)]
    if latent.device.type == "cpu":
        budget = max(DISTANCE_BYTES, 2 * latent.numel() * latent.element_size())
        visits = torch.stack([torch.from_numpy(_visit(block, budget)) for block in blocks])
    else:
        visits = _visit_together(blocks)
    return positions_of(visits)


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
