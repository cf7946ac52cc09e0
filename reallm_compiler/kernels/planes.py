"""Activations as integers, x = s (254 high + low) with high and low of int8, about 16 bits. For
activations of float32 a second set of integers holds what the first one leaves.

Sums of products with int8 weights are exact in 32 and 64 bits, so that results do not depend on
threads, batches or instruction sets. This is the same in torch as compiled kernels do, bit for
bit, and the exact sums that they must come to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.windows import LARGEST, LOW, split

__all__ = ["LARGEST", "LOW", "further_integers", "integer_sums", "integers", "split"]


def integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as integers.

    Args:
        x: float32 [n, q], finite.

    Returns:
        int32 [n, q] from -`LARGEST` to `LARGEST`, and float32 [n], what one of them counts; 0 for
        a row of zeros.
    """
    scaled, unit = _scaled(x)
    return scaled.round_().to(torch.int32), unit


def further_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `integers` leave of activations as integers again; see there."""
    scaled, unit = _scaled(x)
    rest = (scaled - scaled.round()) * (2 * LARGEST)
    return rest.round_().to(torch.int32), unit / (2 * LARGEST)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [n, q] within the range of the integers, and what 1 counts in each row."""
    most = x.abs().amax(1)
    factor = torch.where(most > 0, LARGEST / most, torch.zeros_like(most))
    return x * factor[:, None], most / LARGEST


def integer_sums(entries: Tensor, activations: Tensor) -> Tensor:
    """int64 [n, p]: sums of products of entries [p, q] and activations [n, q], any integers."""
    wide = activations.to(torch.int64)
    return torch.stack([(entries.to(torch.int64) * row).sum(1) for row in wide])
