"""Measured statistics of one matrix: what a codec weighs errors by.

x [q] are the inputs of y = W x and g [p] = d loss / d y, over the predicted tokens of a
calibration text. With labels drawn from the model's own predictions E[g g^T] is the Fisher
information of the outputs, so that

    1/2 tr(E[|x|^2 g g^T] E E[|g|^2 x x^T] E^T) / E[|x|^2 |g|^2]

is, to first order, the KL divergence that an error E of W causes (in its Kronecker form).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixStatistics:
    """Second moments of a matrix [p, q], means over predicted tokens.

    Each matrix is symmetric, of float32 or float64; where only its diagonal was kept, it has one
    dimension.

    Attributes:
        inputs: [q, q], E[x x^T].
        weighted_inputs: [q, q], E[|g|^2 x x^T]; None without gradients.
        outputs: [p, p], E[g g^T]; None without gradients.
        weighted_outputs: [p, p], E[|x|^2 g g^T]; None without gradients.
        energy: E[|x|^2 |g|^2]; None without gradients.
        mean_abs: [q], E|x|; None where it is not known (inputs of a rotated matrix).
        count: tokens that reached the matrix.
    """

    inputs: Tensor
    weighted_inputs: Tensor | None = None
    outputs: Tensor | None = None
    weighted_outputs: Tensor | None = None
    energy: float | None = None
    mean_abs: Tensor | None
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What an error E [p, q] of a matrix or a latent costs: tr(G E H E^T).

    Attributes:
        inputs: H [q, q], symmetric and positive semidefinite; a residual may give its diagonal [q].
        outputs: G [p, p], likewise; None for the identity.
    """

    inputs: Tensor
    outputs: Tensor | None = None
