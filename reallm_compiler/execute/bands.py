"""Tables coded by bands of rows: an embedding may be ten times larger than any other matrix.

Where each row is coded by itself (one scale for it, levels that are not learned, nothing else),
bands of rows give the sections of the whole one after the other, and only one is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from reallm_compiler.codecs import encode_matrix, to_bytes
from reallm_compiler.codecs.numerics.packing import CODES_PER_GROUP
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.storage.matrix import layout_of

BAND = 1 << 22
"""Weights of a band, about."""

CODES = "codes"


def by_bands(matrix: PlannedMatrix) -> bool:
    """Whether a matrix is coded by bands of its rows."""
    return (
        matrix.index is None
        and not matrix.transposed
        and matrix.layout.rows_stand_alone
        and not matrix.plan.needs_statistics
    )


def band_rows(columns: int) -> int:
    """Rows of a band: its codes fill whole bytes, whatever their width."""
    return max(1, BAND // columns // CODES_PER_GROUP) * CODES_PER_GROUP


def numel_in_memory(matrix: PlannedMatrix) -> int:
    """Weights that are in memory at once while a matrix is coded."""
    columns = matrix.shape[1]
    return min(matrix.numel, band_rows(columns) * columns) if by_bands(matrix) else matrix.numel


class BandCoder:
    """Codes a matrix band by band.

    Args:
        matrix: one for which `by_bands` holds.
        bands: its rows in order, each band [n, q] of `band_rows` rows, the last one of fewer.
        seed: of the matrix.
    """

    def __init__(self, matrix: PlannedMatrix, bands: Iterable[torch.Tensor], seed: int) -> None:
        self._matrix = matrix
        self._bands = bands
        self._seed = seed
        self._wrong = 0.0
        self._right = 0.0
        self._along = 0.0
        self.others: dict[str, list[memoryview]] = {}

    def codes(self) -> Iterator[memoryview]:
        """The bytes of the codes, band by band; all else is known after.

        Raises:
            CodecError: a weight is not finite, or a scale overflows its stored type.
        """
        matrix, first = self._matrix, 0
        for band in self._bands:
            encoded = encode_matrix(
                matrix.plan, band, seed=self._seed, source_dtype=matrix.dtype, first_row=first
            )
            square = float(band.to(torch.float64).square().sum())
            self._right += square
            self._wrong += encoded.relative_error**2 * square
            self._along += encoded.shrink * square
            shape = (len(band), matrix.shape[1])
            data = {
                spec.role: to_bytes(encoded.sections[spec.role], spec)
                for spec in layout_of(matrix.plan, shape, matrix.dtype).sections
            }
            for role in data.keys() - {CODES}:
                self.others.setdefault(role, []).append(data[role])
            first += len(band)
            yield data[CODES]

    @property
    def relative_error(self) -> float:
        """||W - W^|| / ||W|| over all bands; 0 for a matrix of zeros."""
        return math.sqrt(self._wrong / self._right) if self._right else 0.0

    @property
    def shrink(self) -> float:
        """<W - W^, W> / ||W||^2 over all bands; 0 for a matrix of zeros."""
        return self._along / self._right if self._right else 0.0
