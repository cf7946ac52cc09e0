"""Changes of logits in few numbers, whose inner products are nearly those of the changes.

A count sketch (Charikar et al. 2002): each number gets a random sign and is added to one of
`BUCKETS` sums. Of two changes sketched with the same signs the product is right on average, with a
standard deviation of about the product of their norms over the root of `BUCKETS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from reallm_compiler.runs.seeds import seed_for

BUCKETS = 1024
"""Numbers of a sketch."""


def random_signs(shape: tuple[int, ...], seed: int) -> Tensor:
    """int8: -1 or 1 for each number, the same on every machine.

    Args:
        shape: of what is sketched.
        seed: of the run.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "signs"))
    return torch.empty(shape, dtype=torch.int8).random_(0, 2, generator=generator).mul_(2).sub_(1)


def sketch(values: Tensor, signs: Tensor) -> Tensor:
    """float32 [BUCKETS] of values [t, v].

    The bucket of a number is its column plus its row, so that a column in which all rows are large
    (a frequent token) is spread over many.

    Args:
        values: float32.
        signs: int8 of the same shape, the same for all that is compared.
    """
    columns = values.shape[1]
    rows = pad(values * signs, (0, (1 - columns) % BUCKETS))  # one more than whole runs of buckets
    flat = rows.flatten()
    return pad(flat, (0, -len(flat) % BUCKETS)).view(-1, BUCKETS).sum(0)
