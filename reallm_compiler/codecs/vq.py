"""Vector quantiser: each vector of d weights becomes the index of its nearest codeword.

The codebook is the matrix's own, learned by k-means, or given: that of a share group. Errors are
measured in weight space: an element that will be multiplied by a scale s counts s^2. Padding at a
ragged edge counts nothing. A learned codebook is rounded to its stored type first; then every
vector is assigned to the words that a reader will see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs import k_means
from reallm_compiler.codecs.assignment import assign
from reallm_compiler.codecs.numbers import stored
from reallm_compiler.codecs.packing import CODES_PER_GROUP, code_dtype, pack, unpack
from reallm_compiler.codecs.scalar import Latent, RowReader, byte_table, look_up
from reallm_compiler.codecs.scales import ScaleField
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.vectors import Vectors
from reallm_compiler.layouts.base import DTYPES
from reallm_compiler.layouts.vq import code_shape
from reallm_compiler.recipe.stages import VectorQuantizer
from reallm_compiler.units import bytes_of_bits, ceil_div

CHUNK = 1 << 17
DEVICE_CHUNK = 1 << 24
"""Weights of a chunk of vectors: one that stays in cache, and one that fills an accelerator."""


class MatrixVectors:
    """The vectors of a latent [p, q], in the order of its grid of codes (`vectors.Vectors`).

    Args:
        params: the quantiser, which says how vectors lie.
        values: the normalised latent [p, q].
        scales: its decoded scales, or None.
    """

    def __init__(self, params: VectorQuantizer, values: Tensor, scales: ScaleField | None) -> None:
        self.dim = params.dim
        self._axis = params.axis
        self._values = values
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
            self._unit = float(self._scales.scale.max()) or 1.0

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
        """The vectors at places `index` of the grid of codes, in row-major order."""
        p, q = self._values.shape
        index = index.to(self._values.device)
        row = index.div(self._grid[1], rounding_mode="floor")[:, None]  # [n, 1]
        column = index.remainder(self._grid[1])[:, None]
        place = torch.arange(self.dim, device=index.device)[None, :]  # [1, d]
        if self._axis == "rows":
            row, column = row * self.dim + place, column.expand(-1, self.dim)
        else:
            row, column = row.expand(-1, self.dim), column * self.dim + place
        inside = (row < p) & (column < q)
        row, column = row.clamp(max=p - 1), column.clamp(max=q - 1)
        values = self._values[row, column] * inside
        weights: Tensor | None = None
        if self._scales is not None:
            weights = (self._scales.at(row, column) / self._unit).square()
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
            square = self._scales.rows(top, end).div_(self._unit).square_()
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


def encode(params: VectorQuantizer, latent: Latent) -> Sections:
    """Sections of the codes and, unless it was given, of the codebook."""
    vectors = MatrixVectors(params, latent.values, latent.scales)
    sections: Sections = {}
    if latent.codebook is None:
        codebook = fit_codebook(params, vectors, latent.generator)
        sections["codebook"] = codebook
    else:
        codebook = latent.codebook.to(latent.values.device)
    words = codebook.to(latent.values.dtype)
    codes = torch.empty(vectors.count, dtype=code_dtype(params.index_bits), device=words.device)
    for first, values, weights in vectors.chunks():
        codes[first : first + len(values)] = assign(values, weights, words)
    return {"codes": pack(codes, params.index_bits)} | sections


def fit_codebook(params: VectorQuantizer, vectors: Vectors, generator: torch.Generator) -> Tensor:
    """A codebook [2^(b d), d] for `vectors`, in its stored type.

    Raises:
        CodecError: the stored type is too narrow for the codewords.
    """
    words = k_means.fit(vectors, 2**params.index_bits, params.iterations, generator)
    return stored(
        words,
        TORCH_DTYPES[DTYPES[params.dtype]],
        "codewords",
        "give the matrix `scales`, or store the codebook with `dtype: float32`",
    )


class VectorReader:
    """Rows of vector codes of a latent [p, q]."""

    def __init__(
        self,
        params: VectorQuantizer,
        shape: tuple[int, int],
        codes: Tensor,
        words: Tensor,
    ) -> None:
        self._axis = params.axis
        self._dim = params.dim
        self._bits = params.index_bits
        self._shape = shape
        self._width = code_shape(params, shape)[1]
        self._codes = codes
        self._words = words
        self._wide = byte_table(words, self._bits) if 8 % self._bits == 0 else None
        self._high = self._dim if self._axis == "rows" else 1
        self.step = CODES_PER_GROUP * self._high

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalised latent."""
        q = self._shape[1]
        lines = ceil_div(last - first, self._high)  # rows of the grid of codes
        count = lines * self._width
        start = first // self._high * self._width * self._bits // 8
        data = self._codes[start : start + bytes_of_bits(count * self._bits)]
        if self._wide is not None:
            vectors = look_up(self._wide, data).view(-1, self._dim)[:count]
        else:
            vectors = look_up(self._words, unpack(data, self._bits, count))
        if self._axis == "rows":
            grid = vectors.view(lines, q, self._dim).transpose(1, 2)
            # A single line of codes reshapes to a view that lies column by column.
            return grid.reshape(-1, q)[: last - first].contiguous()
        rows = vectors.view(lines, self._width * self._dim)
        return rows[:, :q].contiguous()


def reader(
    params: VectorQuantizer,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
    unit_range: bool,
) -> RowReader:
    """A reader of the codes of a latent [p, q]."""
    codes = sections["codes"]
    words = sections["codebook"].to(codes.device, dtype)
    return VectorReader(params, shape, codes, words)
