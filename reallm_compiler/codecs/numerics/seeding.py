"""k-means++ (Arthur and Vassilvitskii): the codewords that k-means starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.assignment import errors as errors_of
from reallm_compiler.codecs.numerics.vectors import DenseVectors

SEEDING_ROUNDS = 256
"""Draws K / 256 codewords at a time, one at a time for K up to 256."""

CANDIDATES = 4
"""Vectors that are drawn for a codeword where one is drawn at a time; the best of them stays."""


def seed_codebook(sample: DenseVectors, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: codewords drawn one after the other with chances proportional to their error.

    Each codeword is the one of `CANDIDATES` drawn vectors that leaves the least error. Codebooks of
    more than 256 codewords draw several at a time and take them all, which changes little: a draw
    is then blind to the few drawn with it.
    """
    values, weights = sample.values, sample.weights
    codebook = values.new_zeros(count, sample.dim)
    first = (
        torch.ones(sample.count, dtype=torch.float64)
        if weights is None
        else _vector_weights(weights)
    )
    chosen = _draw(first, 1, generator)
    if not len(chosen):
        return codebook
    codebook[:1] = values[chosen.to(values.device)]
    error = errors_of(values, weights, codebook[:1])
    several = count // SEEDING_ROUNDS
    across = _Across(values, weights)
    done = 1
    while done < count:
        chosen = _draw(error, min(count - done, several) if several > 1 else CANDIDATES, generator)
        if not len(chosen):
            break  # every vector is a codeword already
        fresh = values[chosen.to(values.device)]
        if several > 1:
            error = torch.minimum(error, errors_of(values, weights, ordered(fresh)))
        else:
            errors = torch.minimum(error, across.errors(fresh))  # [candidates, n]
            best = int(errors.sum(1).argmin())
            fresh, error = fresh[best : best + 1], errors[best]
        codebook[done : done + len(fresh)] = fresh
        done += len(fresh)
    return ordered(codebook)


def ordered(codebook: Tensor) -> Tensor:
    """One-dimensional codewords in ascending order; others as they are."""
    return codebook.sort(dim=0).values if codebook.shape[1] == 1 else codebook


class _Across:
    """Vectors [n, d] and weights laid out by element, for errors of few codewords at many."""

    def __init__(self, values: Tensor, weights: Tensor | None) -> None:
        self._values = values.t().contiguous()  # [d, n]
        if weights is not None and weights.dim() == 2:
            weights = weights.t().contiguous()
        self._weights = weights  # [d, n] or [n]

    def errors(self, codewords: Tensor) -> Tensor:
        """[m, n]: the weighted squared distance of each vector to each of `codewords` [m, d]."""
        squares = (self._values - codewords[:, :, None]).square_()  # [m, d, n]
        if self._weights is not None:
            squares *= self._weights
        return squares.sum(1)


def _vector_weights(weights: Tensor) -> Tensor:
    return (weights if weights.dim() == 1 else weights.sum(1)).to(torch.float64)


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` different indices, drawn in proportion to `chances` [n]; none if all are 0.

    On the CPU whatever the device: a running sum has a fixed order of addition there.
    """
    running = chances.cpu().cumsum(0, dtype=torch.float64)
    total = float(running[-1]) if len(running) else 0.0
    if not total > 0:
        return torch.empty(0, dtype=torch.int64)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * total
    indices = torch.searchsorted(running, points, right=True).clamp_(max=len(running) - 1)
    if count == 1:
        return indices
    indices = indices.sort().values
    return indices[torch.cat([indices.new_ones(1) > 0, indices[1:] > indices[:-1]])]
