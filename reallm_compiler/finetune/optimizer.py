"""Learning rates by step, and values put back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn


def rate(
    step: int, steps: int, *, lr: float, warmup: float, schedule: Literal["constant", "cosine"]
) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant or half a cosine to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return lr * (step + 1) / rising
    if schedule == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def restore(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Put values into parameters, by name."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
