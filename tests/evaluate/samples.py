"""Matrices for surveys: noise, and something that a network could learn."""

from __future__ import annotations

import torch
from torch import Tensor

P, Q = 64, 96


def noise(seed: int, p: int = P, q: int = Q) -> Tensor:
    """[p, q], normal."""
    return torch.randn(p, q, generator=torch.Generator().manual_seed(seed))


def image(p: int = P, q: int = Q) -> Tensor:
    """[p, q], smooth in both directions."""
    x, y = torch.linspace(0, 1, p)[:, None], torch.linspace(0, 1, q)[None]
    return torch.sin(6 * x + 9 * y) + torch.cos(11 * x * y) + torch.sin(20 * x) * torch.cos(15 * y)
