"""The weights of a share group, each read when it is asked for, so that one is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from reallm_compiler.planning.parts import PlannedMatrix


class GroupWeights(Iterable[torch.Tensor]):
    """The matrices [p, q] of a group, in order.

    Args:
        load: reads a matrix.
        matrices: those of the group.

    Attributes:
        current: name of the matrix that was given out last; empty before the first and once all
            have been taken.
    """

    def __init__(
        self, load: Callable[[PlannedMatrix], torch.Tensor], matrices: Sequence[PlannedMatrix]
    ) -> None:
        self._load = load
        self._matrices = matrices
        self.current = ""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for matrix in self._matrices:
            self.current = matrix.name
            yield self._load(matrix)
        self.current = ""
