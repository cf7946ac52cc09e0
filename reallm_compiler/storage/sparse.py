"""Size law of the sparse residual: K values, and a stream of row counts and columns.

The matrix is cut into blocks of rows, each of which keeps max(1, floor(fraction x its weights))
weights; K is the sum over the blocks. Stored are K values in the order of rows and columns, and
p + K codes of one width: how many weights each row keeps, then their columns, ascending in a row.

A code has ceil(log2 q) bits, which is enough for columns, and for counts below q; where so many are
kept that a row could be full, one bit more where q is a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reallm_compiler.stages import Sparse
from reallm_compiler.storage.base import DTYPES, Context, Cost, ResidualLaw, SectionSpec, Shape
from reallm_compiler.storage.values import Finite, code_rows
from reallm_compiler.storage.work import DOUBLE_PRODUCTS, TRIALS, WEIGHTS, Work
from reallm_compiler.units import index_bits

WIDEST = 16
"""Bits of a code, at most."""


@dataclass(frozen=True, slots=True)
class SparseIndex:
    """Codes [p + K]: counts of p rows, which add up in each block, then columns, ascending in each
    row and inside of the matrix.

    Attributes:
        shape: p and q of the matrix.
        rows: rows of a block.
        counts: kept weights of each block.
    """

    shape: Shape
    rows: int
    counts: tuple[int, ...]

    def problem(self, data: memoryview, dtype: str, shape: Sequence[int]) -> str | None:
        """The first block whose counts do not add up, or the first column that is wrong."""
        import numpy as np

        bits = int(dtype[1:])
        codes = np.concatenate([part[:, 0] for _, part in code_rows(data, bits, shape[0], 1)])
        counts, columns = codes[: self.shape[0]], codes[self.shape[0] :]
        for block, wanted in enumerate(self.counts):
            found = int(counts[block * self.rows : (block + 1) * self.rows].sum())
            if found != wanted:
                return f"the rows of block {block} keep {found} weights where {wanted} must be"
        outside = columns >= self.shape[1]
        if outside.any():
            index = int(outside.argmax())
            return f"column {columns[index]} of kept weight {index} is outside of the matrix"
        first = np.zeros(len(columns) + 1, dtype=bool)
        first[np.cumsum(counts)] = True  # where a row begins, but the first
        unsorted = (columns[1:] <= columns[:-1]) & ~first[1:-1]
        if unsorted.any():
            index = int(unsorted.argmax()) + 1
            return f"the columns of a row do not ascend at kept weight {index}"
        return None


def block_rows(params: Sparse, rows: int) -> int:
    """Rows of a block."""
    return rows if params.rows == "all" else min(params.rows, rows)


def counts(params: Sparse, shape: Shape) -> tuple[int, ...]:
    """Kept weights of each block of rows."""
    p, q = shape
    step = block_rows(params, p)
    return tuple(
        max(1, int(params.fraction * (min(step, p - first) * q))) for first in range(0, p, step)
    )


def most_in_a_row(params: Sparse, shape: Shape) -> int:
    """Kept weights of a row, at most: q, or q - 1 where that saves a bit of each code."""
    p, q = shape
    step = block_rows(params, p)
    short = q - 1
    fits = all(
        count <= short * min(step, p - index * step)
        for index, count in enumerate(counts(params, shape))
    )
    return short if fits and q > 1 else q


def code_bits(params: Sparse, shape: Shape) -> int:
    """Bits of a count or a column."""
    return max(index_bits(shape[1]), most_in_a_row(params, shape).bit_length())


class SparseLaw(ResidualLaw[Sparse]):
    """Values of kept weights, and where they are."""

    def sections(self, params: Sparse, shape: Shape, context: Context) -> list[SectionSpec]:
        """Values and codes for a matrix [p, q]."""
        kept = counts(params, shape)
        rule = SparseIndex(shape=shape, rows=block_rows(params, shape[0]), counts=kept)
        return [
            SectionSpec(
                role="sparse_values",
                dtype=DTYPES[params.dtype],
                shape=(sum(kept),),
                term="residual",
                values=Finite(),
            ),
            SectionSpec(
                role="sparse_index",
                dtype=f"b{min(code_bits(params, shape), WIDEST)}",
                shape=(shape[0] + sum(kept),),
                term="residual",
                values=rule,
            ),
        ]

    def refusal(self, params: Sparse, shape: Shape, context: Context) -> str | None:
        """Rows that are too long for their columns to be stored."""
        if code_bits(params, shape) > WIDEST:
            return f"outliers are kept of rows of less than {2**WIDEST} columns, not {shape[1]}"
        return None

    def cost(self, params: Sparse, shape: Shape, context: Context) -> Cost:
        """Scores, and with statistics the metric, its factor and its inverse in float64."""
        p, q = shape
        size = 8 * p * q + (8 * 4 * q * q if params.needs_statistics else 0)
        return Cost(host_bytes=size)

    def work(self, params: Sparse, shape: Shape, context: Context) -> Work:
        """Scores, sorted; with statistics the inverse of the metric, and values fitted by it."""
        p, q = shape
        exact = 3 * q**3 + p * q * q if params.needs_statistics else 0
        tried = params.group if params.by == "leave_one_out" else 0
        return {
            WEIGHTS: p * q * (p * q).bit_length(),
            TRIALS: tried * p * q,
            DOUBLE_PRODUCTS: exact,
        }
