"""Latents as vectors of d weights: how they are cut, coded one by one, and sampled for tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import Latent, QuantizerCodec, Shape
from reallm_compiler.codecs.numerics.vectors import DenseVectors, Vectors, sampled_indices
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import QuantizerStage
from reallm_compiler.storage.vq import VectorGrid, code_shape, vectors_of_each

CHUNK = 1 << 17
DEVICE_CHUNK = 1 << 24
"""Weights of a chunk of vectors: one that stays in cache, and one that fills an accelerator."""

PICKED = 1 << 16
"""Vectors that are picked from a latent at once."""


class MatrixVectors:
    """The vectors of a latent [p, q], in the order of its grid of codes (`vectors.Vectors`).

    Args:
        params: how vectors lie.
        values: the normalized latent, or a block of its columns [p, q].
        scales: the decoded scales of the latent, or None.
        column: the first of the latent's columns that `values` hold.
        row: the first of the latent's rows that they hold.
    """

    def __init__(
        self,
        params: VectorGrid,
        values: Tensor,
        scales: ScaleField | None,
        column: int = 0,
        row: int = 0,
    ) -> None:
        self.dim = params.dim
        self._axis = params.axis
        self._values = values
        self._column = column
        self._row = row
        self._grid = code_shape(params, (values.shape[0], values.shape[1]))
        self.count = self._grid[0] * self._grid[1]
        along = values.shape[0] if params.axis == "rows" else values.shape[1]
        self._ragged = along % self.dim != 0
        self._scales = None if scales is None or scales.per == "tensor" else scales
        self._per_element = self._ragged or not (
            self._scales is None or self._scales.constant_within(self.dim, params.axis)
        )
        # Only ratios of weights matter: the largest is made 1, far from any underflow.
        self._unit = 1.0
        if self._scales is not None:
            self._unit = self._scales.largest

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All vectors, a few rows of the grid of codes at a time."""
        p, q = self._values.shape
        high = self.dim if self._axis == "rows" else 1
        chunk = CHUNK if self._values.device.type == "cpu" else DEVICE_CHUNK
        step = max(1, chunk // (q * high))
        for first in range(0, self._grid[0], step):
            top, end = first * high, min((first + step) * high, p)
            vectors = self._cut(self._values[top:end])
            yield first * self._grid[1], vectors, self._weights(top, end)

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors at positions `index` of the grid of codes, in row-major order."""
        p, q = self._values.shape
        index = index.to(self._values.device)
        row = index.div(self._grid[1], rounding_mode="floor")[:, None]  # [n, 1]
        column = index.remainder(self._grid[1])[:, None]
        inner = torch.arange(self.dim, device=index.device)[None, :]  # [1, d]
        if self._axis == "rows":
            row, column = row * self.dim + inner, column.expand(-1, self.dim)
        else:
            row, column = row.expand(-1, self.dim), column * self.dim + inner
        inside = (row < p) & (column < q)
        row, column = row.clamp(max=p - 1), column.clamp(max=q - 1)
        values = self._values[row, column] * inside
        weights: Tensor | None = None
        if self._scales is not None:
            weights = (
                self._scales.at(row + self._row, column + self._column) / self._unit
            ).square()
        if self._ragged:
            ones = inside.to(values.dtype)
            weights = ones if weights is None else weights * ones
        if weights is not None and not self._per_element:
            weights = weights[:, 0]
        return values, weights

    def _weights(self, top: int, end: int) -> Tensor | None:
        if self._scales is None and not self._ragged:
            return None
        if self._scales is None:
            q = self._values.shape[1]
            square = self._values.new_ones(end - top, q)
        else:
            square = self._scales.rows(self._row + top, self._row + end).div_(self._unit).square_()
            square = square[:, self._column : self._column + self._values.shape[1]]
        weights = self._cut(square)
        return weights if self._per_element else weights[:, 0].contiguous()

    def _cut(self, rows: Tensor) -> Tensor:
        """Rows [n, q] as vectors [vectors, d], padded with zeros."""
        n, q = rows.shape
        d = self.dim
        if self._axis == "rows":
            rows = torch.nn.functional.pad(rows, (0, 0, 0, -n % d)) if n % d else rows
            return rows.view(-1, d, q).transpose(1, 2).reshape(-1, d)
        rows = torch.nn.functional.pad(rows, (0, -q % d)) if q % d else rows
        return rows.reshape(-1, d)


class GridCoder(ColumnCoder):
    """Codes the vectors of a latent, each by itself.

    Args:
        params: how vectors lie.
        latent: the latent.
        dtype: of a code.
    """

    def __init__(self, params: VectorGrid, latent: Latent, dtype: torch.dtype) -> None:
        self.step = params.dim if params.axis == "cols" else 1
        self.row_step = params.dim if params.axis == "rows" else 1
        self._params = params
        self._latent = latent
        shape = (latent.values.shape[0], latent.values.shape[1])
        self._codes = torch.empty(
            code_shape(params, shape), dtype=dtype, device=latent.values.device
        )

    def improve(
        self, values: Tensor, scales: Tensor, root: Tensor, columns: slice, rows: slice
    ) -> Tensor:
        """Vectors in the metric of their columns; along the rows columns are single."""
        if self.step == 1:
            return super().improve(values, scales, root, columns, rows)
        d, m = self.step, values.shape[1]
        grid = self._codes[rows, columns.start // d]
        if m < d:  # the padding of a ragged edge costs nothing
            root = torch.nn.functional.pad(root, (0, d - m, 0, d - m))
            values = torch.nn.functional.pad(values, (0, d - m))
            scales = torch.nn.functional.pad(scales, (0, d - m))
        codes = torch.stack([grid.to(torch.int64), self._nearest_in(values, root)])
        decoded = torch.stack([self._decoded(one) for one in codes])  # old and new, [2, n, d]
        costs = (((decoded - values) * scales) @ root).square().sum(2)
        better = costs[1] < costs[0]
        grid.copy_(torch.where(better, codes[1], codes[0]))
        return torch.where(better[:, None], decoded[1], decoded[0])[:, :m]

    def _nearest_in(self, values: Tensor, root: Tensor) -> Tensor:
        """Codes [n] of vectors [n, d] with small errors |e C|^2; the nearest ones will do."""
        return self._nearest(values, None)

    def _nearest(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """Codes [n] of vectors [n, d]; weights as of `Vectors.chunks`."""
        raise NotImplementedError

    def _decoded(self, codes: Tensor) -> Tensor:
        """The vectors [n, d] of codes [n]."""
        raise NotImplementedError

    def quantize(
        self, block: Tensor, columns: slice, *, rows: slice = slice(None), decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Codes of the grid of vectors in the block, and its codewords as [n, m]."""
        first, top = int(columns.start or 0), int(rows.start or 0)
        scales = self._latent.scales
        vectors = MatrixVectors(self._params, block.contiguous(), scales, first, top)
        shape = (block.shape[0], block.shape[1])
        grid = code_shape(self._params, shape)
        codes = self._codes.view(-1)
        whole = grid == tuple(self._codes.shape)
        if not whole:
            codes = codes.new_empty(vectors.count)
        for start, values, weights in vectors.chunks():
            codes[start : start + len(values)] = self._nearest(values, weights)
        if not whole:
            left, line = first // self.step, top // self.row_step
            self._codes[line : line + grid[0], left : left + grid[1]] = codes.view(grid)
        if not decode:
            return codes.view(grid), None
        return codes.view(grid), as_rows(self._decoded(codes), self._params.axis, shape)


def as_rows(vectors: Tensor, axis: str, shape: Shape) -> Tensor:
    """The matrix [p, q] that vectors [grid of codes, d] make, without the padding of its edge."""
    (p, q), d = shape, vectors.shape[1]
    if axis == "rows":
        grid = vectors.view(-1, q, d).transpose(1, 2)  # [rows of the grid, d, q]
        # A single line of codes reshapes to a view that lies column by column.
        return grid.reshape(-1, q)[:p].contiguous()
    return vectors.view(p, -1)[:, :q].contiguous()


Q = TypeVar("Q", bound=QuantizerStage)


class GridCodec(QuantizerCodec[Q]):
    """The codec of a kind that is a `VectorGrid` and learns its tables from vectors."""

    def learn(self, params: Q, vectors: Vectors, generator: torch.Generator) -> Sections:
        """Tables for `vectors`, in their stored type.

        Raises:
            CodecError: the stored type is too narrow for them.
        """
        raise NotImplementedError

    def fit(self, params: Q, latent: Latent) -> Sections:
        """The tables of one latent."""
        vectors = MatrixVectors(cast(VectorGrid, params), latent.values, latent.scales)
        return self.learn(params, vectors, latent.generator)

    def fit_group(
        self, params: Q, latents: Iterable[Latent], count: int, generator: torch.Generator
    ) -> Sections:
        """The common tables of several latents; see `gathered`."""
        vectors = gathered(cast(VectorGrid, params), latents, count, generator)
        return self.learn(params, vectors, generator)


def gathered(
    params: VectorGrid, latents: Iterable[Latent], count: int, generator: torch.Generator
) -> DenseVectors:
    """Vectors of `count` latents for a common codebook, as many from each.

    What such a codebook makes small is the sum of the latents' relative errors, each counted by
    its number of weights, so that one with large weights does not take the codebook for itself.
    """
    most = vectors_of_each(count)
    sample: _Sample | None = None
    for latent in latents:
        sample = sample or _Sample(latent.values, count * most, params.dim)
        vectors = MatrixVectors(params, latent.values, latent.scales)
        sample.add(vectors, most, generator)
        del latent, vectors  # before the next one is made
    if sample is None:
        raise CodecError("a codebook needs at least one matrix")
    return sample.vectors()


class _Sample:
    """Weighted vectors of several latents, gathered in one tensor.

    Args:
        like: a latent, of whose type and device the vectors are.
        most: the most vectors that will come.
        dim: their dimension.
    """

    def __init__(self, like: Tensor, most: int, dim: int) -> None:
        # Memory that is never touched costs nothing, and nothing need be joined afterwards.
        self._values = like.new_empty(most, dim)
        self._weights = like.new_empty(most, dim)
        self._count = 0

    def add(self, vectors: MatrixVectors, most: int, generator: torch.Generator) -> None:
        """Take at most `most` of a latent's vectors, by their share of its energy."""
        first = self._count
        for index in torch.split(sampled_indices(vectors, most, generator), PICKED):
            values, weights = vectors.pick(index)
            self._widen(values.dtype)
            span = slice(self._count, self._count + len(index))
            self._values[span] = values
            self._weights[span] = 1.0 if weights is None else weights.view(len(index), -1)
            self._count += len(index)
        values, own_weights = self._values[first : self._count], self._weights[first : self._count]
        energy = float(values.square().mul_(own_weights).sum(dtype=torch.float64))
        own_weights *= vectors.count / energy if energy else 0.0

    def _widen(self, dtype: torch.dtype) -> None:
        """Go over to float64 with the first latent of that type."""
        if torch.promote_types(self._values.dtype, dtype) != self._values.dtype:
            self._values, self._weights = self._values.to(dtype), self._weights.to(dtype)

    def vectors(self) -> DenseVectors:
        """All that was taken."""
        return DenseVectors(
            values=self._values[: self._count], weights=self._weights[: self._count]
        )
