"""Activations as integers, x = s (254 high + low) with high and low of int8, about 16 bits.

Sums of products with int8 weights are exact in 32 and 64 bits, so that results do not depend on
threads, batches or instruction sets. This is the same in torch as compiled kernels do, bit for
bit, and the exact sums that they must come to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.windows import LARGEST, LOW, split

__all__ = ["LARGEST", "LOW", "integer_sums", "integers", "split"]


def integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as integers.

    Args:
        x: float32 [n, q], finite.

    Returns:
        int32 [n, q] from -`LARGEST` to `LARGEST`, and float32 [n], what one of them counts; 0 for
        a row of zeros.
    """
    most = x.abs().amax(1)
    factor = torch.where(most > 0, LARGEST / most, torch.zeros_like(most))
    rounded = (x * factor[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return rounded.to(torch.int32), most / LARGEST


def integer_sums(entries: Tensor, activations: Tensor) -> Tensor:
    """int64 [n, p]: sums of products of entries [p, q] and activations [n, q], any integers."""
    wide = activations.to(torch.int64)
    return torch.stack([(entries.to(torch.int64) * row).sum(1) for row in wide])
