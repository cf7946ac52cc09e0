"""What the contract of codecs shares: shapes, and decoders by rows."""

from __future__ import annotations

from torch import Tensor

from reallm_compiler.codecs.scale_field import ScaleField

Shape = tuple[int, int]

PANEL = 1 << 18
"""Weights of a panel of rows, about: a megabyte of float32."""


class RowDecoder:
    """Decodes rows of a matrix or a latent.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step: int = 1

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), a fresh contiguous tensor [last - first, q]."""
        raise NotImplementedError

    def fill(self, out: Tensor, first: int, scales: ScaleField | None) -> bool:
        """Rows first, first + 1, ..., scaled, into `out` [n, q] by a faster way than `rows`.

        Returns:
            False, and nothing is done, where there is no such way.
        """
        return False
