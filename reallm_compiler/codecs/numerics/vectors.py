"""Weighted vectors: what k-means clusters and vector quantizers code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Vectors(Protocol):
    """Weighted vectors that are made a chunk at a time."""

    @property
    def count(self) -> int:
        """Number of vectors n."""
        ...

    @property
    def dim(self) -> int:
        """Their dimension d."""
        ...

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All vectors in order: index of the first, vectors [n, d], weights [n] or [n, d].

        Weights are None where all are 1.
        """
        ...

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors [n, d] at `index` [n], and their weights as in `chunks`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseVectors:
    """Vectors that are held in memory: `values` [n, d], `weights` [n], [n, d] or None."""

    values: Tensor
    weights: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of vectors."""
        return self.values.shape[0]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.values.shape[1]

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Chunks of 2^16 vectors."""
        for first in range(0, self.count, 1 << 16):
            span = slice(first, first + (1 << 16))
            yield first, self.values[span], None if self.weights is None else self.weights[span]

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors and weights at `index`."""
        return self.values[index], None if self.weights is None else self.weights[index]


def sampled(vectors: Vectors, size: int, generator: torch.Generator) -> DenseVectors:
    """All vectors if there are at most `size`, else `size` random ones, perhaps some twice."""
    values, weights = vectors.pick(sampled_indices(vectors, size, generator))
    return DenseVectors(values=values, weights=weights)


def sampled_indices(vectors: Vectors, size: int, generator: torch.Generator) -> Tensor:
    """int64: the indices of the vectors that `sampled` takes."""
    if vectors.count <= size:
        return torch.arange(vectors.count)
    return torch.randint(vectors.count, (size,), generator=generator)
