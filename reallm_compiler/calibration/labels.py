"""Labels drawn from the model's own prediction.

With them the second moments of gradients are the Fisher information: the second derivative of the
divergence from the model itself. Each sequence draws from its own generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.runs.seeds import seed_for

PIECE = 1 << 22
"""Probabilities that are summed at once."""


def gradient_of_logits(logits: Tensor, chunk: Chunk, seed: int) -> Tensor:
    """The gradient [b, t, v] of the summed negative log likelihood of drawn labels.

    Args:
        logits: [b, t, v]; a token whose logits are not finite has no loss.
        chunk: the sequences.
        seed: of the labels.
    """
    gradient = torch.softmax(logits.detach().float(), -1)
    for row, number in enumerate(chunk.numbers):
        labels = draw(gradient[row], seed, f"labels/{number}")
        gradient[row, torch.arange(len(labels), device=labels.device), labels] -= 1
    finite = torch.isfinite(gradient.sum(-1, keepdim=True))  # [b, t, 1]
    return torch.where(finite, gradient, 0.0).to(logits.dtype)


def draw(probabilities: Tensor, seed: int, name: str) -> Tensor:
    """int64 [n]: a label for each row of probabilities [n, v].

    The uniform numbers come from a generator on the CPU, so they are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, name))
    uniform = torch.rand(len(probabilities), dtype=torch.float64, generator=generator)
    return inverted(probabilities, uniform)


def inverted(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """int64 [n]: where the sums of probabilities [n, v] pass uniform numbers [n], float64."""
    labels = torch.empty(len(probabilities), dtype=torch.int64)
    step = max(1, PIECE // probabilities.shape[1])
    for first in range(0, len(labels), step):
        sums = probabilities[first : first + step].cpu().cumsum(1, dtype=torch.float64)  # [n, v]
        threshold = uniform[first : first + step] * sums[:, -1]
        found = torch.searchsorted(sums, threshold[:, None], right=True)  # [n, 1]
        labels[first : first + step] = found[:, 0]
    return labels.clamp_(max=probabilities.shape[1] - 1).to(probabilities.device)
