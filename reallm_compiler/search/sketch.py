"""Changes of logits in few numbers, whose inner products are nearly those of the changes.

A count sketch (Charikar et al. 2002): each number gets a random sign and is added to one of
`BUCKETS` sums. Of two changes sketched with the same signs the product is right on average, with a
standard deviation of about the product of their norms over the root of `BUCKETS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BUCKETS = 1024
"""Numbers of a sketch."""


def sketch(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 [BUCKETS] of values [t, v].

    Args:
        values: float32.
        generator: of the signs, on the same device: in the same state for all that is compared.
    """
    signed = torch.empty_like(values).random_(0, 2, generator=generator)
    signed.mul_(2).sub_(1).mul_(values)
    return pad(signed, (0, -values.shape[1] % BUCKETS)).view(-1, BUCKETS).sum(0)
