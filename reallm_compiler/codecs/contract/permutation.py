"""The contract of a codec of permutations: the order in which a latent is coded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from torch import Tensor

from reallm_compiler.codecs.contract.rows import Shape
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import Metric
from reallm_compiler.stages import (
    PermutationStage,
)


class ColumnOrder:
    """Stored orders of the columns of a latent, and perhaps of its rows.

    Attributes:
        rows: int64 [p], the rows of the latent in the order that is coded; None for their own.
    """

    rows: Tensor | None = None

    def restore(self, rows: Tensor, first: int) -> Tensor:
        """Decoded rows first, first + 1, ... [n, q] with their columns back where they belong; all
        rows at once where these are in order, and they are back then too.
        """
        raise NotImplementedError

    def coded(self, first: int) -> tuple[Tensor | None, int | None]:
        """int64 [q], the columns of coded row `first` in the order that is coded, None for their
        own; and the row from which on another order holds, None if this one holds to the end.
        """
        raise NotImplementedError


O = TypeVar("O", bound=PermutationStage)  # noqa: E741 - order


class PermutationCodec(Generic[O]):
    """The codec of a kind of permutation; this one leaves columns where they are."""

    def encode(
        self, params: O, latent: Tensor, moments: Metric | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections, and the latent [p, q] in the order that is coded.

        Args:
            params: the stage.
            latent: the latent.
            moments: E[x x^T] of its inputs and E[g g^T] of the gradients at its outputs, if these
                were measured; for a kind that needs statistics.
        """
        return {}, latent

    def decoder(
        self, params: O, shape: Shape, sections: Mapping[str, Tensor]
    ) -> ColumnOrder | None:
        """The stored orders; None without any."""
        return None
