"""Size law of the monarch residual: L [p, k] and R [k, q].

With k blocks on both sides and b(j) = floor(j / ceil(q / k)) the block of column j,

    M[i, j] = L[i, b(j)] R[i mod k, j]

which is the product P L' P^T R' of two block-diagonal matrices and a fixed permutation P (Dao et
al. 2022): k (p + q) numbers, 2 n sqrt(n) for n x n and k = sqrt(n). Of type int8 each of the k x k
blocks, the rows i mod k and the columns of b, has a float16 scale for its part of L and one for R.
"""

from __future__ import annotations

import math

from reallm_compiler.stages import Monarch
from reallm_compiler.storage.base import DTYPES, Context, ResidualLaw, SectionSpec, Shape
from reallm_compiler.storage.values import Finite
from reallm_compiler.storage.work import DECOMPOSITIONS, Work
from reallm_compiler.units import ceil_div


def blocks_of(params: Monarch, shape: Shape) -> int:
    """k: as asked for, or the root of the smaller extent; no block is empty."""
    least = min(shape)
    wanted = min(params.blocks or math.isqrt(least), least)
    return ceil_div(shape[1], ceil_div(shape[1], wanted))


class MonarchLaw(ResidualLaw[Monarch]):
    """Two factors."""

    def sections(self, params: Monarch, shape: Shape, context: Context) -> list[SectionSpec]:
        """L and R of a matrix [p, q], and their scales."""
        (p, q), k, dtype = shape, blocks_of(params, shape), DTYPES[params.dtype]
        entries: list[tuple[str, str, Shape, Finite]] = [
            ("monarch_left", dtype, (p, k), Finite()),
            ("monarch_right", dtype, (k, q), Finite()),
        ]
        if params.dtype == "int8":
            entries += [
                (f"{role}_scales", "f16", (k, k), Finite(negative=False))
                for role in ("monarch_left", "monarch_right")
            ]
        return [
            SectionSpec(role=role, dtype=stored, shape=extents, term="residual", values=values)
            for role, stored, extents, values in entries
        ]

    def work(self, params: Monarch, shape: Shape, context: Context) -> Work:
        """A decomposition of each of the k x k blocks."""
        p, q = shape
        return {DECOMPOSITIONS: p * q * max(1, min(shape) // blocks_of(params, shape))}
