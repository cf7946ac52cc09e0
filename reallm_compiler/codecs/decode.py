"""A coded matrix back to weights: the one way back, for readers and for measuring.

    latent -> decode -> transforms undone -> + residuals that tuning does not change
           -> (columns times their gains) -> + factors -> (rows times their gains)

Decoding goes by panels of rows that stay in cache; with the identity autoencoder nothing of full
size is made but the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs.contract import MatrixTransform, ResidualTerm, RowDecoder
from reallm_compiler.codecs.latent import StagesDecoder, panels
from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import TORCH_DTYPES, check_sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan, ResidualStage
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout, layout_of

ALIGNMENT = 64
"""Bytes at a multiple of which a result begins, as torch's own tensors do."""


def decode_matrix(
    plan: MatrixPlan,
    shape: tuple[int, int],
    source_dtype: str,
    sections: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    tuned: Sequence[SectionSpec] = (),
    layout: MatrixLayout | None = None,
) -> Tensor:
    """Decodes a matrix [p, q].

    Args:
        plan: the plan that it was encoded by.
        shape: p and q.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        sections: all section tensors by role, those of its share group and of a reused decoder
            too, on one device.
        tuned: sections that tuning adds to those of the plan: gains of columns.
        dtype: type of the result; the work is done in float32 (float64 for a float64 source).
        layout: of the matrix under the plan, where it was made before.

    Raises:
        CodecError: the sections are not those of the size law, or an index is out of range.
    """
    if layout is None:
        layout = layout_of(plan, shape, source_dtype)
    check_sections(sections, [*layout.sections, *layout.reused_sections, *tuned])
    decoder = MatrixDecoder(layout, sections, work_dtype(source_dtype))
    device = next(iter(sections.values())).device
    result = _fresh(shape, dtype, device)
    for first, last in decoder.panels():
        decoder.fill(result[first:last], first)
    return result


class MatrixDecoder:
    """Decodes rows of a matrix.

    Args:
        layout: of the matrix.
        sections: its section tensors by role; a residual whose sections are missing is left out,
            without `gain` rows are not rescaled.
        dtype: precision of the work.
        coded_only: decode the coded part alone: no residual, no gains.

    Attributes:
        step: rows at a multiple of which a range must begin; 1 where each row decodes alone.
        transforms: those of the plan, the last one first: the order in which they are undone.
        coarse: fewer than 2 bits a weight: codes may rightly stand for nothing but zero.
    """

    def __init__(
        self,
        layout: MatrixLayout,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        coded_only: bool = False,
    ) -> None:
        plan, shape = layout.plan, layout.shape
        rate = plan.quantizer.rate
        self.coarse = plan.quantizer.coarse and rate is not None and rate < 2
        self._shape = shape
        latent = StagesDecoder(plan, layout.latent_shape, sections, dtype)
        self._coded: RowDecoder = codec_of(plan.autoencoder).decoder(
            plan.autoencoder, shape, sections, latent, dtype, in_group=plan.share is not None
        )
        self.transforms: list[MatrixTransform] = [
            codec_of(transform).decoder(transform, shape, sections, dtype)
            for transform in reversed(plan.transform)
        ]
        self.step = math.lcm(self._coded.step, *(one.step for one in self.transforms))
        kept = () if coded_only else plan.residual
        fixed = [stage for stage in kept if not stage.factored]
        self._fixed = residual_terms(fixed, shape, sections, dtype)
        factors = [stage for stage in kept if stage.factored]
        self._factors = residual_terms(factors, shape, sections, dtype)
        self._gains = None if coded_only else sections.get("gain")
        self._column_gains = None if coded_only else sections.get("column_gain")
        self._learned = any(values.requires_grad for values in sections.values())

    def panels(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that may be decoded by themselves and fill the matrix."""
        return panels(self._shape, self.step)

    def row(self, index: int) -> Tensor:
        """One row [q] of the matrix; at most `step` rows are decoded for it."""
        first = index - index % self.step
        return self.rows(first, min(first + self.step, self._shape[0]))[index - first]

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the matrix, a fresh tensor [last - first, q]; see `step`."""
        rows = self._changeable(self.transformed_rows(first, last))
        for transform in self.transforms:
            rows = self._changeable(transform.restore_(rows, first))
        for term in self._fixed:
            term.add_(rows, first)
        if self._column_gains is not None:
            rows.mul_(self._column_gains.to(rows.dtype))
        for term in self._factors:
            term.add_(rows, first)
        if self._gains is not None:
            rows.mul_(self._gains[first:last, None].to(rows.dtype))
        return rows

    def _changeable(self, rows: Tensor) -> Tensor:
        """Rows that may be changed in place: autograd takes no chain of such changes of views."""
        return rows.clone() if self._learned else rows

    def transformed_rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the coded part before its transforms are undone; see `step`."""
        return self._coded.rows(first, last)

    def fill(self, out: Tensor, first: int) -> None:
        """Rows first, first + 1, ... of the matrix into `out` [n, q], of any floating type.

        The range of float16 is so small that weights near its end, a little off, would come back
        as infinities: they become its largest number.
        """
        gains = self._gains is not None or self._column_gains is not None
        later = self.transforms or self._fixed or self._factors or gains
        if later or not self._coded.fill(out, first, None):
            out.copy_(self.rows(first, first + len(out)))
        if out.dtype == torch.float16:
            largest = torch.finfo(out.dtype).max
            out.clamp_(-largest, largest)


def residual_terms(
    stages: Iterable[ResidualStage],
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> list[ResidualTerm]:
    """The stored residuals of a matrix [p, q], in order, whose sections are there."""
    terms = (codec_of(stage).decoder(stage, shape, sections, dtype) for stage in stages)
    return [term for term in terms if term is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How a coded matrix W^ differs from the matrix W; zeros for a matrix of zeros.

    Attributes:
        error: ||W - W^|| / ||W||, by Frobenius.
        shrink: <W - W^, W> / ||W||^2, so that W^ = (1 - shrink) W + rest with <rest, W> = 0.
    """

    error: float
    shrink: float


def relative_error(weight: Tensor, decoder: MatrixDecoder) -> float:
    """||W - W^|| / ||W||; see `deviation`."""
    return deviation(weight, decoder).error


def deviation(weight: Tensor, decoder: MatrixDecoder) -> Deviation:
    """How the decoded matrix differs from the weight, sums in float64.

    Raises:
        CodecError: nothing is left of a matrix that was something, though it has 2 bits a weight.
    """
    one = unit(weight)
    wrong = right = along = 0.0
    some = decoder.coarse
    for first, last in decoder.panels():
        rows = weight[first:last].to(torch.float64)
        decoded = decoder.rows(first, last)
        some = some or bool(decoded.any())
        scaled, error = rows / one, (rows - decoded) / one
        along += float((scaled * error).sum())
        right += float(scaled.square_().sum())
        wrong += float(error.square_().sum())
    if right and not (some and math.isfinite(wrong)):
        what = "not finite" if some else "zero everywhere"
        raise CodecError(
            f"the coded matrix is {what}, and the weights are not: they reach "
            f"{float(weight.abs().max()):.6g}",
            hint="give the matrix scales and factors with `dtype: float32`, or `keep` it",
        )
    if not right:
        return Deviation(error=0.0, shrink=0.0)
    return Deviation(error=math.sqrt(wrong / right), shrink=along / right)


def work_dtype(source_dtype: str) -> torch.dtype:
    """The precision in which a matrix of a checkpoint's type is coded and decoded."""
    return torch.float64 if TORCH_DTYPES[source_dtype] == torch.float64 else torch.float32


def _fresh(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a result [p, q].

    On the CPU it is NumPy's, which asks the system for huge pages from 4 MB on; torch does not.
    Where they are to be had, the first touch of a large result costs a fifth of the time, and
    in ordinary pages it would cost more than decoding.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)
