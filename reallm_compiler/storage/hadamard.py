"""Size law of the transform `hadamard`: nothing is stored.

Blocks follow from the shape, and the signs from the recipe's own seed by a formula.
"""

from __future__ import annotations

import math

from reallm_compiler.stages import Hadamard
from reallm_compiler.storage.base import Context, Shape, SizeLaw
from reallm_compiler.storage.work import WEIGHTS, Work


def block_of(params: Hadamard, extent: int) -> int:
    """The largest power of two, up to the stage's block, that divides `extent`."""
    return min(extent & -extent, params.block)


def row_block(params: Hadamard, shape: Shape) -> int:
    """Rows of a matrix [p, q] that are mixed with each other; 1 if rows stay by themselves."""
    return 1 if params.sides == "columns" else block_of(params, shape[0])


def column_block(params: Hadamard, shape: Shape) -> int:
    """Columns of a matrix [p, q] that are mixed with each other; 1 if they stay by themselves."""
    return 1 if params.sides == "rows" else block_of(params, shape[1])


class HadamardLaw(SizeLaw[Hadamard]):
    """No sections."""

    def work(self, params: Hadamard, shape: Shape, context: Context) -> Work:
        """Additions of every level of the fast transform, on either side."""
        blocks = row_block(params, shape), column_block(params, shape)
        return {WEIGHTS: math.prod(shape) * sum(block.bit_length() - 1 for block in blocks)}
