"""The sequences that a model is measured on, in chunks of one length.

The last token of a sequence predicts nothing that is known, so it is left out: every position that
the model computes is one of a predicted token, and none is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

CHUNK = 2048
"""Tokens of a chunk, at most, unless one sequence is longer."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some sequences of one length.

    Attributes:
        ids: int64 [b, t], without the last token of each.
        numbers: which sequences they are.
    """

    ids: Tensor
    numbers: tuple[int, ...]

    def to(self, device: torch.device) -> Chunk:
        """The same on a device."""
        return Chunk(self.ids.to(device), self.numbers)


def chunks_of(sequences: Sequence[Sequence[int]]) -> list[Chunk]:
    """The sequences by their length, in chunks that depend on nothing else."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    found = []
    for length, same in groupby(order, key=lambda number: len(sequences[number]) - 1):
        numbers = list(same)
        step = max(1, CHUNK // length)
        for first in range(0, len(numbers), step):
            taken = numbers[first : first + step]
            rows = [list(sequences[number][:-1]) for number in taken]
            found.append(Chunk(torch.tensor(rows, dtype=torch.int64), tuple(taken)))
    return found


def predicted(chunks: Iterable[Chunk]) -> int:
    """Predicted tokens."""
    return sum(chunk.ids.numel() for chunk in chunks)
