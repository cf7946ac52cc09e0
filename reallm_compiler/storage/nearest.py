"""Size law of the permutation `nearest`: an order of the columns for each block of rows.

For 4096 columns and 128 rows that is 12 x 4096 bits per block, 0.09375 bits per weight
(paper, section 3).
"""

from __future__ import annotations

from reallm_compiler.stages import NearestPermutation
from reallm_compiler.storage.base import Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.orders import column_orders, row_blocks
from reallm_compiler.storage.work import NEIGHBOURS, PRODUCTS, Work

DEVICE_BYTES = 4 << 30
"""Bytes of distances that may be held at once on an accelerator, where all blocks advance."""


class NearestLaw(SizeLaw[NearestPermutation]):
    """An order of the columns for each block of rows."""

    def sections(
        self, params: NearestPermutation, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """The orders for a latent [p, q]."""
        return [column_orders(params.rows, shape)]

    def cost(self, params: NearestPermutation, shape: Shape, context: Context) -> Cost:
        """Tables of distances on a GPU, each made alone and then laid beside the others."""
        rows, columns = shape
        table = 4 * columns * columns
        together = max(1, DEVICE_BYTES // table)
        return Cost(device_bytes=2 * table * min(together, row_blocks(params.rows, rows)))

    def work(self, params: NearestPermutation, shape: Shape, context: Context) -> Work:
        """Distances of all columns in each block, and a walk along them."""
        rows, columns = shape
        blocks = row_blocks(params.rows, rows)
        return {PRODUCTS: rows * columns * columns, NEIGHBOURS: blocks * columns * columns}
