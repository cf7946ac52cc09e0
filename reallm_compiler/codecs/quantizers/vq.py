"""Vector quantizer: each vector of d weights becomes the index of its nearest codeword.

The codebook is the matrix's own, learned by k-means, or given: that of a share group. Errors are
measured in weight space: an element that will be multiplied by a scale s counts s^2. Padding at a
ragged edge counts nothing. A learned codebook is rounded to its stored type first (int8: integers
times one scale, the largest codeword at 127); then every vector is assigned to the codewords that a
reader will see.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, RowDecoder, Shape
from reallm_compiler.codecs.numerics import k_means
from reallm_compiler.codecs.numerics.assignment import assign
from reallm_compiler.codecs.numerics.codebooks import (
    codebook_table,
    read_codebook,
    store_codebook,
)
from reallm_compiler.codecs.numerics.packing import code_dtype, pack, rows_per_byte, unpack
from reallm_compiler.codecs.numerics.vectors import Vectors
from reallm_compiler.codecs.quantizers.scalar import byte_table, look_up
from reallm_compiler.codecs.quantizers.vector_grid import GridCodec, GridCoder, as_rows
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.stages import Range, VectorQuantizer
from reallm_compiler.storage.vq import VectorGrid, code_shape
from reallm_compiler.units import bytes_of_bits, ceil_div


class VectorCoder(GridCoder):
    """Codes the vectors of a latent by a codebook.

    Args:
        params: the quantizer.
        latent: the latent.
        codebook: the codebook [2^(b d), d] as stored, in the precision of the work.
    """

    def __init__(self, params: VectorQuantizer, latent: Latent, codebook: Tensor) -> None:
        super().__init__(params, latent, code_dtype(params.index_bits))
        self._bits = params.index_bits
        self._codebook = codebook

    def _nearest(self, values: Tensor, weights: Tensor | None) -> Tensor:
        return assign(values, weights, self._codebook)

    def _nearest_in(self, values: Tensor, root: Tensor) -> Tensor:
        if not self._codebook.shape[1] > 1:
            return self._nearest(values, None)
        return assign(values @ root, None, self._codebook.to(root) @ root)

    def _decoded(self, codes: Tensor) -> Tensor:
        return look_up(self._codebook, codes)

    def sections(self) -> Sections:
        """The packed codes."""
        return {"codes": pack(self._codes, self._bits)}


class VectorDecoder(RowDecoder):
    """Rows of vector codes of a latent [p, q]."""

    def __init__(
        self, params: VectorGrid, shape: Shape, codes: Tensor, codebook: Tensor, bits: int
    ) -> None:
        self._axis = params.axis
        self._dim = params.dim
        self._bits = bits
        self._shape = shape
        self._width = code_shape(params, shape)[1]
        self._codes = codes
        self._codebook = codebook
        self._wide = byte_table(codebook, self._bits) if 8 % self._bits == 0 else None
        self._high = self._dim if self._axis == "rows" else 1
        self.step = rows_per_byte(self._width * self._bits) * self._high

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        q = self._shape[1]
        lines = ceil_div(last - first, self._high)  # rows of the grid of codes
        count = lines * self._width
        start = first // self._high * self._width * self._bits // 8
        data = self._codes[start : start + bytes_of_bits(count * self._bits)]
        if self._wide is not None:
            vectors = look_up(self._wide, data).view(-1, self._dim)[:count]
        else:
            vectors = look_up(self._codebook, unpack(data, self._bits, count))
        return as_rows(vectors, self._axis, (last - first, q))


class VectorCodec(GridCodec[VectorQuantizer]):
    """Vectors by their nearest codewords."""

    def learn(
        self, params: VectorQuantizer, vectors: Vectors, generator: torch.Generator
    ) -> Sections:
        """One codebook [2^(b d), d]."""
        codebook = k_means.fit(vectors, 2**params.index_bits, params.iterations, generator)
        return store_codebook(params.dtype, codebook)

    def coder(
        self,
        params: VectorQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> VectorCoder:
        """By the codebook as stored."""
        values = latent.values
        return VectorCoder(params, latent, read_codebook(tables, values, values.dtype))

    def decoder(
        self,
        params: VectorQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> VectorDecoder:
        """Codewords by their codes."""
        codes = sections["codes"]
        codebook = read_codebook(sections, codes, dtype)
        return VectorDecoder(params, shape, codes, codebook, params.index_bits)

    def window_values(
        self,
        params: VectorQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        range: Range,
    ) -> WindowValues:
        """The codebook."""
        table, unit = codebook_table(sections)
        return WindowValues(table=table, unit=unit)
