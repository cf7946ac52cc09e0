"""Size law of the column permutation: q indices of ceil(log2 q) bits per block of rows.

For 4096 columns and 128 rows that is 12 x 4096 bits per block, 0.09375 bits per weight
(paper, section 3).
"""

from __future__ import annotations

from reallm_compiler.stages import NearestPermutation
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.values import Order
from reallm_compiler.units import ceil_div, index_bits


def row_blocks(params: NearestPermutation, rows: int) -> int:
    """Blocks of rows that have an order of their own; the last may be shorter."""
    return 1 if params.rows == "all" else ceil_div(rows, params.rows)


def sections(params: NearestPermutation, shape: tuple[int, int]) -> list[SectionSpec]:
    """Sections of the orders for a latent [p, q]."""
    p, q = shape
    blocks = row_blocks(params, p)
    return [
        SectionSpec(
            role="order",
            dtype=f"b{index_bits(q)}",
            shape=(blocks, q),
            term="permutation",
            values=Order(),
        )
    ]
