"""Size laws of stored orders: n indices of ceil(log2 n) bits for an order of n columns or rows."""

from __future__ import annotations

from reallm_compiler.stages import ActOrderPermutation, NormSortedPermutation
from reallm_compiler.storage.base import Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.values import Order
from reallm_compiler.storage.work import WEIGHTS, Work
from reallm_compiler.units import ceil_div, index_bits

COLUMNS = "order"
"""Role of the section with the orders of the columns."""

SORTING_PASSES = 16
"""Times that the weights are gone over to sort them, about: they are moved one by one."""

ROWS = "row_order"
"""Role of the section with the order of the rows."""


def row_blocks(size: int | str, rows: int) -> int:
    """Blocks of `size` rows that have an order of their own; the last may be shorter.

    Args:
        size: rows of a block, or `all`.
        rows: of the latent.
    """
    return 1 if isinstance(size, str) else ceil_div(rows, size)


def column_orders(size: int | str, shape: Shape) -> SectionSpec:
    """The orders of the columns of a latent [p, q] for blocks of `size` rows."""
    p, q = shape
    return _orders(COLUMNS, row_blocks(size, p), q)


def _orders(role: str, blocks: int, count: int) -> SectionSpec:
    return SectionSpec(
        role=role,
        dtype=f"b{index_bits(count)}",
        shape=(blocks, count),
        term="permutation",
        values=Order(),
    )


class SortedLaw(SizeLaw[NormSortedPermutation | ActOrderPermutation]):
    """Orders of columns, of rows, or both."""

    def sections(
        self,
        params: NormSortedPermutation | ActOrderPermutation,
        shape: Shape,
        context: Context,
    ) -> list[SectionSpec]:
        """The orders for a latent [p, q]."""
        found = []
        if params.sides != "rows":
            found.append(column_orders(params.rows, shape))
        if params.sides != "columns":
            found.append(_orders(ROWS, 1, shape[0]))
        return found

    def cost(
        self,
        params: NormSortedPermutation | ActOrderPermutation,
        shape: Shape,
        context: Context,
    ) -> Cost:
        """A copy of the latent in float32, or the moments that it is sorted by in float64."""
        p, q = shape
        size = 8 * (p * p + q * q) if params.needs_statistics else 4 * p * q
        return Cost(host_bytes=size)

    def work(
        self,
        params: NormSortedPermutation | ActOrderPermutation,
        shape: Shape,
        context: Context,
    ) -> Work:
        """Norms, and the latent put in order."""
        return {WEIGHTS: SORTING_PASSES * shape[0] * shape[1]}
