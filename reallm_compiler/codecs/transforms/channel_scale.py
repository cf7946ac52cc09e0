"""The transform `channel_scale`: columns times factors s by the size of their inputs.

    T(W) = W diag(s),   W x = T(W) (x / s),   s_j = a_j^alpha,  a = E|x|

or s_j = a_j^alpha / w_j^(1 - alpha) with the mean magnitude w_j of column j. The factors are
divided by the root of the product of the least and the largest. Rounding then errs less where
inputs are large. alpha is given, or searched on a grid: that with the least tr(E H E^T), with
H = E[x x^T] and E the error of the matrix rounded to its nearest codes (AWQ, Lin et al. 2023,
section 3.2, searches so by the outputs themselves). alpha = 0 leaves the matrix as it is.

Stored are the inverse factors, by which decoded columns are multiplied, in float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        """The section of the factors, and the matrix [p, q] transformed in its place."""
        if trial is None:
            raise CodecError("the transform `channel_scale` needs statistics")
        if params.alpha == "search":
            alphas = [Fraction(step, params.grid) for step in range(params.grid)]
            alpha = best_alpha(params, matrix, trial, alphas)
        else:
            alpha = Fraction(params.alpha)
        stored = inverse_factors(params, matrix, trial, alpha)
        return {ROLE: stored}, ChannelScaling(stored, matrix.dtype).apply_(matrix)

    def decoder(
        self, params: ChannelScale, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ChannelScaling:
        """The factors of a matrix [p, q]."""
        return ChannelScaling(sections[ROLE], dtype)


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


def inverse_factors(params: ChannelScale, matrix: Tensor, trial: Trial, alpha: Fraction) -> Tensor:
    """float16 [q]: 1 / s of a matrix [p, q], as stored."""
    statistics = trial.statistics
    size = statistics.mean_abs
    if size is None:
        moments = statistics.inputs
        size = (moments if moments.dim() == 1 else moments.diagonal()).sqrt()
    factors = size.to(matrix.device, torch.float64).pow(float(alpha))
    if params.by == "both":
        means = matrix.abs().mean(0, dtype=torch.float64)
        factors = factors / (means.pow(float(1 - alpha)) + LEAST)
    factors = factors.clamp(min=LEAST)
    least, largest = (float(end) for end in torch.aminmax(factors))
    inverse = math.sqrt(least * largest) / factors
    return inverse.clamp(*RANGE).to(torch.float16)


def best_alpha(
    params: ChannelScale, matrix: Tensor, trial: Trial, alphas: list[Fraction]
) -> Fraction:
    """The exponent with the least cost, the first among equals."""
    gram = full(trial.statistics.inputs).to(matrix.device, matrix.dtype)
    best, least = alphas[0], math.inf
    for alpha in alphas:
        scaling = ChannelScaling(inverse_factors(params, matrix, trial, alpha), matrix.dtype)
        coded = trial.coded(scaling.apply_(matrix.clone()))
        error = scaling.restore_(coded, 0).sub_(matrix)
        cost = float((error @ gram).mul_(error).sum(dtype=torch.float64))
        if cost < least:
            best, least = alpha, cost
    return best
