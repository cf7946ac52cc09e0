"""Matrices to study: of a checkpoint, or made here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from reallm_compiler.checkpoint import open_source
from reallm_compiler.models.weights import Weights


@dataclass(frozen=True)
class Matrix:
    """A matrix by name."""

    name: str
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """p and q."""
        return self.values.shape[0], self.values.shape[1]


def synthetic(size: int) -> Iterable[Matrix]:
    """A smooth matrix like an image (the sum of a few waves), and white noise."""
    generator = torch.Generator().manual_seed(5)
    x = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(x, x, indexing="ij")
    image = torch.zeros(size, size)
    for _ in range(12):
        a, b, phase, power = torch.rand(4, generator=generator).tolist()
        image += (0.2 + power) * torch.sin(20 * (a - 0.5) * x + 20 * (b - 0.5) * y + 6.3 * phase)
    yield Matrix("smooth image", image / image.std())
    yield Matrix("white noise", torch.randn(size, size, generator=generator))


def loaded(folder: Path, pattern: str, crop: int | None = None) -> list[Matrix]:
    """Matrices of a checkpoint whose names match, perhaps only their upper left corner."""
    inventory = open_source(folder)
    weights = Weights(inventory)
    matrices = []
    for fact in inventory.matrices():
        if not fnmatchcase(fact.name, pattern):
            continue
        values = weights.matrix(fact.tensor, fact.index, transposed=fact.transposed).float()
        matrices.append(Matrix(fact.name, values[:crop, :crop].contiguous()))
    return matrices
