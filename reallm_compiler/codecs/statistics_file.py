"""Archives of kind `statistics`, read one matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reallm_compiler.codecs.sections import read_section
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import FormatError
from reallm_compiler.storage.statistics import sections
from reallm_formats import Archive, Closing, StatisticsDocument, names
from reallm_formats.kinds.statistics import NONE

BLOCK = 256
"""Rows of a symmetric matrix that are handled at once."""


def triangle(extent: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """The lower triangle of a matrix [n, n] by blocks of rows.

    Yields the first row, the one after the last, and a mask of [first:last, :last] whose elements,
    in their order, are those of the triangle row by row.
    """
    columns = torch.arange(extent, device=device)
    for first in range(0, extent, BLOCK):
        last = min(extent, first + BLOCK)
        yield first, last, columns[:last] <= columns[first:last, None]


def symmetric(stored: Tensor, extent: int) -> Tensor:
    """The symmetric matrix [n, n] of its lower triangle [n (n + 1) / 2], row by row."""
    whole = stored.new_empty(extent, extent)
    done = 0
    for first, last, mask in triangle(extent, stored.device):
        rows = whole[first:last, :last]
        count = int(mask.sum())
        rows[mask] = stored[done : done + count]
        done += count
        whole[:first, first:last] = rows[:, :first].T
        square = rows[:, first:]
        square.copy_(square.tril() + square.tril(-1).T)
    return whole


@dataclass(frozen=True, slots=True)
class Reached:
    """What of a text reached a matrix.

    Attributes:
        reached: tokens that reached it.
        left_out: those of them that were left out, as a number was not finite or too large.
        dead: inputs that were always zero.
    """

    reached: int
    left_out: int
    dead: int


class StatisticsFile(Closing):
    """An open file of statistics: those of one matrix at a time. Close it, or use `with`.

    Args:
        path: an archive of kind `statistics`.

    Attributes:
        path: the file.
        document: what it says of itself.
        rows: what it stores of each matrix, by name.

    Raises:
        FormatError: it is no such archive, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = Archive.open(path)
        try:
            self.document: StatisticsDocument = self._archive.statistics
        except FormatError:
            self._archive.close()
            raise
        self.rows = {row.name: row for row in self.document.matrices}

    @property
    def digest(self) -> bytes:
        """SHA-256 of header and manifest, which names every byte of the file."""
        return self._archive.digest

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._archive.file_bytes

    def read(self, name: str, device: torch.device | str = "cpu") -> MatrixStatistics:
        """The statistics of a matrix, in float32.

        Args:
            name: one of `rows`.
            device: where they are wanted.

        Raises:
            FormatError: a section is damaged, or holds what it cannot mean.
        """
        row = self.rows[name]
        p, q = row.shape
        inputs = self._moment(row.inputs, "inputs", q, device)
        mean_abs = self._section(row.inputs, "mean_abs")
        counts = self._section(name, "counts")
        if row.output_form == NONE:
            return MatrixStatistics(
                inputs=inputs,
                weighted_inputs=None,
                outputs=None,
                weighted_outputs=None,
                energy=None,
                mean_abs=mean_abs.to(device),
                count=int(counts.view(torch.int64)[0]),
            )
        return MatrixStatistics(
            inputs=inputs,
            weighted_inputs=self._moment(name, "weighted_inputs", q, device),
            outputs=self._moment(name, "outputs", p, device),
            weighted_outputs=self._moment(name, "weighted_outputs", p, device),
            energy=float(self._section(name, "energy")),
            mean_abs=mean_abs.to(device),
            count=int(counts.view(torch.int64)[0]),
        )

    def facts(self, name: str) -> Reached:
        """How many tokens reached a matrix, and what of it was never anything but zero."""
        counts = self._section(name, "counts").view(torch.int64).tolist()
        mean_abs = self._section(self.rows[name].inputs, "mean_abs")
        return Reached(counts[0], counts[1], int((mean_abs == 0).sum()))

    def close(self) -> None:
        """Unmap the file."""
        self._archive.close()

    def _section(self, name: str, role: str) -> Tensor:
        spec = next(spec for spec in sections(self.rows[name]) if spec.role == role)
        return read_section(self._archive, names.matrix_section(name, role), spec)

    def _moment(self, name: str, role: str, extent: int, device: torch.device | str) -> Tensor:
        """[n, n], or its diagonal [n] where that alone is stored."""
        stored = self._section(name, role).to(device)
        return stored if len(stored) == extent else symmetric(stored, extent)
