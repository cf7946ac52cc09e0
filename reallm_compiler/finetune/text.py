"""The sequences that are tuned on and held out, and the order in which they are met.

Padding (see `models.sequences`) counts in no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.errors import FinetuneError
from reallm_compiler.models.sequences import Sequences, permutation


def check_number(sequences: Sequences) -> None:
    """Refuse a text of which nothing could be held out.

    Raises:
        FinetuneError: it gives one sequence alone.
    """
    if len(sequences) < 2:
        raise FinetuneError(
            f"the text gives {len(sequences)} sequence; at least 2 are needed",
            note="one is held out for early stopping",
            hint="give more text, or a smaller window",
        )


def split(sequences: Sequences, held_out: int, seed: int) -> tuple[Sequences, Sequences]:
    """Sequences to tune on, in a drawn order, and those held out: a tenth at most, one at least."""
    order = permutation(len(sequences), seed, "held out")
    count = max(1, min(held_out, len(sequences) // 10))
    return sequences.take(order[count:]), sequences.take(order[:count])


def batch_indices(step: int, batch: int, count: int, seed: int, *labels: object) -> Tensor:
    """Sequences of a step, when all are met again and again, each time in another order.

    Args:
        step: number of the step, from 0.
        batch: sequences of a step.
        count: sequences in all.
        seed, labels: of the order.
    """
    first = step * batch
    rounds = range(first // count, (first + batch - 1) // count + 1)
    indices = torch.cat([permutation(count, seed, *labels, number) for number in rounds])
    begin = first - rounds[0] * count
    return indices[begin : begin + batch]
