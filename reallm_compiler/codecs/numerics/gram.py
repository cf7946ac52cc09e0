"""Gram matrices as metrics of errors: damping and triangular factors."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.errors import CodecError

REPAIRS = 12
"""How often the damping is raised for a matrix that is not positive definite."""


def full(moment: Tensor) -> Tensor:
    """A moment [n, n], also where only its diagonal [n] was kept."""
    return torch.diag(moment) if moment.dim() == 1 else moment


def diagonal(moment: Tensor) -> Tensor:
    """The diagonal [n] of a moment, also where only that was kept."""
    return moment if moment.dim() == 1 else moment.diagonal()


def damped(gram: Tensor, damping: float) -> Tensor:
    """float64 [n, n]: a Gram matrix with damping on its diagonal, scaled to a mean diagonal of 1.

    Args:
        gram: [n, n], symmetric.
        damping: what is added to each element of the diagonal, relative to their mean.
    """
    gram = gram.to(torch.float64)
    mean = gram.diagonal().mean()
    if not float(mean) > 0:
        return torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    gram = gram / mean
    gram.diagonal().add_(damping)
    return gram / (1 + damping)


def factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """U [n, n], unit upper triangular, and D [n] of H = U diag(D) U^T, in float64.

    Args:
        gram: H [n, n], symmetric; where it is not positive definite its damping is raised.

    Raises:
        CodecError: no damping helps, as with numbers that are not finite.
    """
    upper = cholesky(gram.flip(0, 1)).flip(0, 1)  # H = C C^T with C upper triangular
    diagonal = upper.diagonal()
    return upper / diagonal, diagonal.square()


def cholesky(gram: Tensor) -> Tensor:
    """C [n, n], lower triangular, of H = C C^T, in float64.

    Args:
        gram: H [n, n], symmetric, with a mean diagonal of about 1; where it is not positive
            definite its damping is raised tenfold, from 1e-8 on.

    Raises:
        CodecError: no damping helps, as with numbers that are not finite.
    """
    matrix = gram
    for attempt in range(REPAIRS):
        lower, info = torch.linalg.cholesky_ex(matrix)
        if not int(info) and bool(torch.isfinite(lower).all()):
            return lower  # type: ignore[no-any-return]
        matrix = gram.clone()
        matrix.diagonal().add_(10.0 ** (attempt - 8))
    raise CodecError("the statistics are not a positive definite matrix")


def block_unit(upper: Tensor, size: int) -> Tensor:
    """U with the identity in its diagonal blocks [size, size]: U[:, b] U[b, b]^-1.

    Args:
        upper: [n, n], unit upper triangular.
        size: rows of a block.
    """
    if size == 1:
        return upper
    result = upper.clone()
    for first in range(0, len(upper), size):
        block = slice(first, min(first + size, len(upper)))
        result[:, block] = torch.linalg.solve_triangular(
            upper[block, block], upper[:, block], upper=True, left=False
        )
    return result
