"""The transform `channel_scale`: columns times factors s by the size of their inputs.

    T(W) = W diag(s),   W x = T(W) (x / s),   s_j = a_j^alpha,  a = E|x|

or s_j = a_j^alpha / w_j^(1 - alpha) with the mean magnitude w_j of column j. The factors are
divided by the root of the product of the least and the largest. Rounding then errs less where
inputs are large. alpha is given, or searched on a grid: that with the least tr(E H E^T), with
H = E[x x^T] and E the error of the matrix rounded to its nearest codes (AWQ, Lin et al. 2023,
section 3.2, searches so by the outputs themselves). alpha = 0 leaves the matrix as it is.

Stored are the inverse factors, by which decoded columns are multiplied, in float16. Factors that
are folded into what makes the input belong to all matrices that read it: alpha is then that with
the least sum of their costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import MatrixTransform, Shape, TransformCodec, Trial
from reallm_compiler.codecs.numerics.gram import full
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import Mixing
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import ChannelScale
from reallm_compiler.storage.channel_scale import ROLE

LEAST = 1e-4
"""The least factor before the common one, and what is added to divisors (AWQ)."""

RANGE = (2.0**-14, 2.0**15)
"""Where stored factors lie: what float16 holds in full."""


class ChannelScaleCodec(TransformCodec[ChannelScale]):
    """One factor for each column."""

    def encode(
        self, params: ChannelScale, matrix: Tensor, trial: Trial | None = None
    ) -> tuple[Sections, Tensor]:
        """The section of the factors, and the matrix [p, q] transformed in its place.

        A matrix whose factors are folded has been multiplied before, and stays as it is.
        """
        if params.fold:
            return {}, matrix
        if trial is None:
            raise CodecError("the transform `channel_scale` needs statistics")
        stored = _chosen(params, [(matrix, trial)], 1, 1)
        return {ROLE: stored}, ChannelScaling(stored, matrix.dtype).apply_(matrix)

    def factors(
        self, params: ChannelScale, members: Sequence[tuple[Tensor, Trial]], head: int, times: int
    ) -> Tensor:
        """float64 [q]: s."""
        return 1 / _chosen(params, members, head, times).to(torch.float64)

    def decoder(
        self, params: ChannelScale, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ChannelScaling:
        """The factors of a matrix [p, q]."""
        ones = torch.ones(shape[1], dtype=torch.float16)
        return ChannelScaling(ones if params.fold else sections[ROLE], dtype)


class ChannelScaling(MatrixTransform):
    """T(W) = W divided by the stored factors of its columns.

    Args:
        stored: [q], the inverse factors.
        dtype: precision of the work.
    """

    def __init__(self, stored: Tensor, dtype: torch.dtype) -> None:
        self._inverse = stored.to(dtype)

    def apply_(self, matrix: Tensor) -> Tensor:
        """T(W) in the place of W [p, q]."""
        return matrix.div_(self._inverse)

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of W in the place of those of T(W)."""
        return rows.mul_(self._inverse)

    def inputs(self, x: Tensor) -> Tensor:
        """x / s of activations x [..., q]."""
        return x * self._inverse.to(x.device, x.dtype)

    def outputs(self, y: Tensor) -> Tensor:
        """y as it is."""
        return y

    def gradients(self, g: Tensor) -> Tensor:
        """g as it is."""
        return g

    def mixing(self) -> tuple[Mixing, Mixing]:
        """Factors of the inputs."""
        return Mixing(factors=self._inverse), Mixing()


class _Sizes:
    """The sizes of inputs and weights that factors follow, in float64.

    Args:
        params: the stage.
        members: matrices [p, q] that have one input, and what is tried of them.
        head, times: as of `TransformCodec.factors`.
    """

    def __init__(
        self, params: ChannelScale, members: Sequence[tuple[Tensor, Trial]], head: int, times: int
    ) -> None:
        matrix, trial = members[0]
        size = trial.statistics.mean_abs
        if size is None:
            moments = trial.statistics.inputs
            size = (moments if moments.dim() == 1 else moments.diagonal()).sqrt()
        self._inputs = _alike(size.to(matrix.device, torch.float64), head, times)
        self._weights: Tensor | None = None
        if params.by == "both":
            rows = sum(len(matrix) for matrix, _ in members)
            sums = torch.stack([matrix.abs().sum(0, dtype=torch.float64) for matrix, _ in members])
            self._weights = _alike(sums.sum(0) / rows, head, times)

    def inverse(self, alpha: Fraction) -> Tensor:
        """float16 [q]: 1 / s, as stored."""
        factors = self._inputs.pow(float(alpha))
        if self._weights is not None:
            factors = factors / (self._weights.pow(float(1 - alpha)) + LEAST)
        factors = factors.clamp(min=LEAST)
        least, largest = (float(end) for end in torch.aminmax(factors))
        inverse = math.sqrt(least * largest) / factors
        return inverse.clamp(*RANGE).to(torch.float16)


def _alike(sizes: Tensor, head: int, times: int) -> Tensor:
    """The mean of those that are to be alike in the place of each."""
    heads = sizes.view(-1, times, head)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _chosen(
    params: ChannelScale, members: Sequence[tuple[Tensor, Trial]], head: int, times: int
) -> Tensor:
    """float16 [q]: 1 / s with the exponent that is given, or the best of the grid."""
    sizes = _Sizes(params, members, head, times)
    if params.alpha != "search":
        return sizes.inverse(Fraction(params.alpha))
    alphas = [Fraction(step, params.grid) for step in range(params.grid)]
    grams = [full(trial.statistics.inputs).to(matrix.device) for matrix, trial in members]
    best, least = sizes.inverse(alphas[0]), math.inf
    for inverse in map(sizes.inverse, alphas):
        cost = sum(
            _cost(matrix, trial, gram, inverse)
            for (matrix, trial), gram in zip(members, grams, strict=True)
        )
        if cost < least:
            best, least = inverse, cost
    return best


def _cost(matrix: Tensor, trial: Trial, gram: Tensor, inverse: Tensor) -> float:
    """tr(E H E^T) of the error E of a matrix with scaled columns, rounded to nearest."""
    scaling = ChannelScaling(inverse, matrix.dtype)
    coded = trial.coded(scaling.apply_(matrix.clone()))
    error = scaling.restore_(coded, 0).sub_(matrix)
    return float((error @ gram.to(matrix.dtype)).mul_(error).sum(dtype=torch.float64))
