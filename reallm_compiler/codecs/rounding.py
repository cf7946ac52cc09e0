"""The contract of a rounding: how the codes of a latent are chosen; the nearest ones."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import PANEL, ColumnOrder, Latent
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.stages import RoundingStage


class LatentStages(Protocol):
    """The stages of one latent [p, q] before its codes are chosen."""

    @property
    def metric(self) -> Metric | None:
        """What errors of the latent cost, its columns not yet permuted, its rows as they are coded;
        given if the rounding needs statistics.
        """
        ...

    @property
    def order(self) -> ColumnOrder | None:
        """How the columns are permuted."""
        ...

    @property
    def stretches(self) -> tuple[float, ...]:
        """Factors of the scales that the rounding may choose from, in the order of trial."""
        ...

    @property
    def group(self) -> int | None:
        """Consecutive columns of a row that have a scale of their own, which `rescale` can choose
        anew; None where scales lie or are stored otherwise.
        """
        ...

    def rescale(
        self,
        targets: Tensor,
        rows: slice | None,
        column: int,
        stretch: float | Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros [n, 1] (None for zeros) for what rows of a group of columns have become.

        Args:
            targets: [n, group], in the units of the latent.
            rows: first and last row; None for a trial, of which nothing is kept.
            column: the first column of the group.
            stretch: what the scales are multiplied by, or float32 [n] of the rows.
        """
        ...

    def scaled(self, stretch: float = 1.0) -> Latent:
        """The latent with its scales, which are kept for the archive.

        Args:
            stretch: what the scales are multiplied by, where `ScalesStage.stretches`.
        """
        ...

    def coder(self, latent: Latent, importance: Tensor | None = None) -> ColumnCoder:
        """A coder of a scaled latent; the first call learns the tables if there are none."""
        ...


U = TypeVar("U", bound=RoundingStage)


class RoundingCodec(Generic[U]):
    """The codec of a kind of rounding; this one takes the nearest codes."""

    def metric(self, params: U, statistics: MatrixStatistics) -> Metric | None:
        """What errors of the matrix cost, in float64; None if that does not matter."""
        return None

    def encode(self, params: U, stages: LatentStages) -> ColumnCoder:
        """Chooses the codes of a latent: the coder that holds them."""
        latent = stages.scaled()
        coder = stages.coder(latent)
        columns = slice(0, latent.values.shape[1])
        if coder.order is None:
            coder.quantize(latent.values, columns, decode=False)
            return coder
        step = max(PANEL // latent.values.shape[1] // coder.row_step, 1) * coder.row_step
        for first in range(0, len(latent.values), step):
            rows = slice(first, min(first + step, len(latent.values)))
            coder.quantize(latent.values[rows][:, coder.order], columns, rows=rows, decode=False)
        return coder
