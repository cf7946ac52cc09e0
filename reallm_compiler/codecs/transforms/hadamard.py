"""The transform `hadamard`: blocks of rows and columns mixed by signed Hadamard matrices.

    T(W) = H_p S_p W S_q H_q,   H block-diagonal, symmetric and orthogonal, S diagonal signs

so T undone is S_p H_p X H_q S_q. A weight of T(W) is a signed mean of up to block^2 weights of W:
outliers are spread, and what is left is nearly normal whatever W was (QuIP#). Lengths are kept,
so the error of the coded matrix is that of W. Signs come from a hash of integers, the same on
every machine, and depend on the seed and the extent alone (SPEC.md has the formula): matrices that
act on one input share H_q S_q x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs.contract import MatrixTransform, Shape, TransformCodec, Trial
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import Mixing
from reallm_compiler.stages import Hadamard
from reallm_compiler.storage.hadamard import column_block, row_block


class HadamardCodec(TransformCodec[Hadamard]):
    """Nothing is stored."""

    def encode(
        self, params: Hadamard, matrix: Tensor, trial: Trial | None = None
    ) -> tuple[Sections, Tensor]:
        """No sections, and the matrix [p, q] transformed in its place."""
        rotation = Rotation(params, (matrix.shape[0], matrix.shape[1]), matrix.dtype)
        return {}, rotation.apply_(matrix)

    def decoder(
        self, params: Hadamard, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Rotation:
        """The rotation of a matrix [p, q]."""
        return Rotation(params, shape, dtype)


class Rotation(MatrixTransform):
    """The transform of one matrix [p, q].

    Attributes:
        step: rows at a multiple of which a range must begin: those that are mixed.
    """

    def __init__(self, params: Hadamard, shape: Shape, dtype: torch.dtype) -> None:
        p, q = self._extents = shape
        self.step = row_block(params, shape)
        self._left = hadamard_matrix(self.step, dtype)
        self._right = hadamard_matrix(column_block(params, shape), dtype)
        ones = torch.ones(1, dtype=dtype)
        by_rows, by_columns = params.sides != "columns", params.sides != "rows"
        self._row_signs = signs(p, 2 * params.seed).to(dtype) if by_rows else ones.expand(p)
        self._column_signs = signs(q, 2 * params.seed + 1).to(dtype) if by_columns else ones

    def apply_(self, matrix: Tensor) -> Tensor:
        """T(W) in the place of W [p, q]."""
        matrix.mul_(self._row_signs.to(matrix.device)[:, None])
        return self._mix_(matrix.mul_(self._column_signs.to(matrix.device)))

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of W in the place of those of T(W); see `step`."""
        row_signs = self._row_signs[first : first + len(rows)].to(rows.device)
        self._mix_(rows).mul_(row_signs[:, None])
        return rows.mul_(self._column_signs.to(rows.device))

    def _mix_(self, rows: Tensor) -> Tensor:
        """H_p rows H_q in the place of rows [n, q]."""
        count, q = rows.shape
        if self._right.shape[0] > 1:
            width = self._right.shape[0]
            rows.copy_((rows.view(-1, width) @ self._right.to(rows.device)).view(count, q))
        if self.step > 1:
            blocks = rows.view(-1, self.step, q)  # [blocks, rows of a block, q]
            blocks.copy_(torch.matmul(self._left.to(rows.device), blocks))
        return rows

    def inputs(self, x: Tensor) -> Tensor:
        """H_q S_q x of activations x [..., q]."""
        signed = x * self._column_signs.to(x.device, x.dtype)
        return _blocks(signed, self._right.to(x.device, x.dtype))

    def outputs(self, y: Tensor) -> Tensor:
        """S_p H_p y of outputs y [..., p]."""
        return _blocks(y, self._left.to(y.device, y.dtype)) * self._row_signs.to(y.device, y.dtype)

    def mixing(self) -> tuple[Mixing, Mixing]:
        """Signs and blocks of both sides."""
        columns = self._column_signs.expand(self._extents[1])
        return (
            Mixing(factors=columns, block=len(self._right)),
            Mixing(factors=self._row_signs, block=self.step),
        )

    def gradients(self, g: Tensor) -> Tensor:
        """H_p S_p g of gradients g [..., p]."""
        signed = g * self._row_signs.to(g.device, g.dtype)
        return _blocks(signed, self._left.to(g.device, g.dtype))


def _blocks(values: Tensor, matrix: Tensor) -> Tensor:
    """Blocks of the last dimension times a symmetric matrix."""
    if len(matrix) == 1:
        return values
    return (values.reshape(-1, len(matrix)) @ matrix).view(values.shape)


@lru_cache(maxsize=16)
def hadamard_matrix(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The orthogonal Hadamard matrix of `size`, a power of two, by Sylvester's doubling.

    The result is shared: not to be changed.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix / math.sqrt(size)).to(dtype)


def signs(count: int, seed: int) -> Tensor:
    """`count` signs, float64 [count]: -1 where the top bit of splitmix64's output is set.

    The generator of Steele, Lea and Flood, started at `seed`; integers only, modulo 2^64.
    """
    word = np.uint64
    state = np.arange(1, count + 1, dtype=word) * word(0x9E3779B97F4A7C15) + word(seed)
    mixed = (state ^ (state >> word(30))) * word(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> word(27))) * word(0x94D049BB133111EB)
    mixed ^= mixed >> word(31)
    return torch.from_numpy(np.where(mixed >> word(63), -1.0, 1.0))
