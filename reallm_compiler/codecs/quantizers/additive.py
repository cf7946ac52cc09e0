"""Additive quantizer: d columns are a sum of codewords, one of each of M codebooks (AQLM).

The codebooks are learned from the normalized latent by residual k-means and then together
(`numerics.sums`). Where codes are chosen in the metric of the inputs, `rounding` says how.

Source: Egiazarian et al. 2024 (AQLM). There a row is divided by its norm: `scales: rms` per row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, RowDecoder, Shape
from reallm_compiler.codecs.numerics.codebooks import codebook_table, read_codebook, store_codebook
from reallm_compiler.codecs.numerics.packing import pack, rows_per_byte, unpack
from reallm_compiler.codecs.numerics.sums import fit_books, nearest_sums, sums
from reallm_compiler.codecs.numerics.vectors import Vectors
from reallm_compiler.codecs.quantizers.vector_grid import GridCodec, GridCoder, as_rows
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.stages import AdditiveQuantizer, Range
from reallm_compiler.storage.vq import code_shape
from reallm_compiler.units import bytes_of_bits


class AdditiveCoder(GridCoder):
    """Codes the vectors of a latent: the M codes of a vector are held in one integer.

    Args:
        params: the quantizer.
        latent: the latent.
        books: [M, 2^B, d] as stored, in the precision of the work.
    """

    def __init__(self, params: AdditiveQuantizer, latent: Latent, books: Tensor) -> None:
        super().__init__(params, latent, torch.int64)
        self._books = books
        self._bits = params.code_bits
        self._beam = params.beam
        self._shifts = torch.arange(params.codebooks, device=books.device) * self._bits

    def _nearest(self, values: Tensor, weights: Tensor | None) -> Tensor:
        codes = nearest_sums(values, weights, self._books, self._beam)
        return (codes << self._shifts).sum(1)

    def _nearest_in(self, values: Tensor, root: Tensor) -> Tensor:
        books = self._books.to(root) @ root
        return (nearest_sums(values @ root, None, books, self._beam) << self._shifts).sum(1)

    def _apart(self, codes: Tensor) -> Tensor:
        """The codes [..., M] of each codebook."""
        apart: Tensor = codes[..., None] >> self._shifts & (2**self._bits - 1)
        return apart

    def _decoded(self, codes: Tensor) -> Tensor:
        return sums(self._books, self._apart(codes.view(-1)))

    def sections(self) -> Sections:
        """The packed codes."""
        return {"codes": pack(self._apart(self._codes), self._bits)}


class AdditiveDecoder(RowDecoder):
    """Rows of codes of a latent [p, q]."""

    def __init__(
        self, params: AdditiveQuantizer, shape: Shape, codes: Tensor, books: Tensor
    ) -> None:
        self._bits = params.code_bits
        self._columns = shape[1]
        self._width = code_shape(params, shape)[1] * params.codebooks  # codes of a row
        self._codes = codes
        self._books = books
        self.step = rows_per_byte(self._width * self._bits)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        count = (last - first) * self._width
        start = first * self._width * self._bits // 8
        data = self._codes[start : start + bytes_of_bits(count * self._bits)]
        codes = unpack(data, self._bits, count).to(torch.int64).view(-1, len(self._books))
        return as_rows(sums(self._books, codes), "cols", (last - first, self._columns))


class AdditiveCodec(GridCodec[AdditiveQuantizer]):
    """Vectors as sums of codewords."""

    def learn(
        self, params: AdditiveQuantizer, vectors: Vectors, generator: torch.Generator
    ) -> Sections:
        """Codebooks [M, 2^B, d]."""
        books = fit_books(
            vectors,
            params.codebooks,
            2**params.code_bits,
            params.beam,
            params.iterations,
            generator,
        )
        return store_codebook(params.dtype, books)

    def coder(
        self,
        params: AdditiveQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> AdditiveCoder:
        """By the codebooks as stored."""
        values = latent.values
        return AdditiveCoder(params, latent, read_codebook(tables, values, values.dtype))

    def decoder(
        self,
        params: AdditiveQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> AdditiveDecoder:
        """Sums of codewords by their codes."""
        codes = sections["codes"]
        return AdditiveDecoder(params, shape, codes, read_codebook(sections, codes, dtype))

    def window_values(
        self,
        params: AdditiveQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        range: Range,
    ) -> WindowValues:
        """The codebooks one after the other."""
        table, unit = codebook_table(sections)
        return WindowValues(table=table.flatten(1, 2), unit=unit)
