"""A coded latent on its way back to weights.

    codes -> levels or codewords -> s x + z -> columns back

With the identity autoencoder the latent is the matrix itself, with a trained one it is the matrix
of all latents of its patches: these stages need not know. Decoding goes by panels of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import PANEL, LatentDecoder, RowDecoder, Shape
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.stages import MatrixPlan


class StagesDecoder(LatentDecoder):
    """Decodes rows of a latent.

    Args:
        plan: whose permutation, scales and quantizer are meant.
        shape: rows and columns of the latent.
        sections: its section tensors by role, the tables of its group too.
        dtype: precision of the work.

    Attributes:
        quantized: rows of the normalized latent.
        field: its scales; None without any.
        order: its stored orders; None without any.
    """

    def __init__(
        self,
        plan: MatrixPlan,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._shape = shape
        self.field: ScaleField | None = codec_of(plan.scales).decoder(
            plan.scales, shape, sections, dtype
        )
        self.order = codec_of(plan.permutation).decoder(plan.permutation, shape, sections)
        self.quantized: RowDecoder = codec_of(plan.quantizer).decoder(
            plan.quantizer, shape, sections, dtype, plan.scales.range
        )
        self._rows_in_order = self.order is not None and self.order.rows is not None
        self.step = shape[0] if self._rows_in_order else self.quantized.step

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the latent, a fresh tensor; `first` is a multiple of `step`."""
        start, stop = (0, self._shape[0]) if self._rows_in_order else (first, last)
        rows = self.quantized.rows(start, stop)
        if self.field is not None:
            self.field.restore_(rows, start)
        if self.order is not None:
            rows = self.order.restore(rows, start)
        return rows[first:last] if self._rows_in_order else rows

    def fill(self, out: Tensor, first: int, scales: ScaleField | None) -> bool:
        """Rows first, first + 1, ... of the latent into `out` [n, q], of any floating type."""
        return self.order is None and self.quantized.fill(out, first, self.field)

    def whole(self) -> Tensor:
        """The latent, a fresh tensor."""
        return torch.cat([self.rows(first, last) for first, last in panels(self._shape, self.step)])


def panels(shape: Shape, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that may be decoded by themselves and fill a matrix [p, q]."""
    p, q = shape
    size = max(PANEL // q // step, 1) * step
    for first in range(0, p, size):
        yield first, min(first + size, p)
