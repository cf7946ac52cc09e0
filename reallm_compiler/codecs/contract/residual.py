"""The contract of a codec of residuals: what is kept in high precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.contract.rows import PANEL, Shape
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.codecs.windows import StoredFactors
from reallm_compiler.stages import (
    ResidualStage,
)


class ResidualTerm:
    """A decoded residual R [p, q]; this one is zero."""

    def add_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of R added to `rows` [n, q] in place."""
        return rows

    def taken_from(self, weight: Tensor) -> Tensor:
        """`weight` [p, q] less R, a fresh tensor."""
        return weight.clone()

    def add_product_(self, x: Tensor, y: Tensor) -> Tensor:
        """x R^T of activations x [n, q] added to `y` [n, p] in place."""
        (p, q), step = (y.shape[1], x.shape[1]), max(1, PANEL // x.shape[1])
        for first in range(0, p, step):
            last = min(first + step, p)
            y[:, first:last] += x @ self.add_(x.new_zeros(last - first, q), first).t()
        return y

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """L1 [p, r] and L2 [r, q] of R = L1 L2; None if R is no such product."""
        return None


R = TypeVar("R", bound=ResidualStage)


class ResidualCodec(Generic[R]):
    """The codec of a kind of residual; this one keeps nothing."""

    def metric(self, params: R, statistics: MatrixStatistics) -> Metric | None:
        """What errors of the matrix cost where it is fitted; None for their squares."""
        return None

    def encode(
        self,
        params: R,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        metric: Metric | None = None,
    ) -> Sections:
        """Sections of the residual that follows `weight` best.

        Args:
            params: the stage.
            weight: [p, q], the matrix or what the coded part and other residuals leave of it.
            generator: of the matrix, on the CPU.
            whole: the matrix itself, against which losses by the stored type are held.
            metric: in which `weight` is followed, of `metric`; for a kind that needs statistics.
        """
        return {}

    def refined(
        self,
        params: R,
        sections: Mapping[str, Tensor],
        rest: Tensor,
        whole: Tensor,
        metric: Metric | None,
    ) -> Sections:
        """Its sections fitted once more after coding, for a kind that is `refined`.

        Args:
            params: the stage.
            sections: as `encode` made them.
            rest: [p, q], what the coded part and other residuals leave of the matrix.
            whole: the matrix itself.
            metric: in which the codes were chosen; None for the metric of weights.
        """
        return dict(sections)

    def decoder(
        self, params: R, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ResidualTerm | None:
        """The stored residual of a matrix [p, q]; None if `sections` hold none."""
        return None

    def factors(self, params: R, sections: Mapping[str, Tensor]) -> StoredFactors | None:
        """L1 and L2 as they are stored, for kernels; None where the residual is no such product."""
        return None
