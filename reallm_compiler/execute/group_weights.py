"""The weights of a share group, each read when it is asked for, so that one is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch

from reallm_compiler.planning.parts import PlannedMatrix


class GroupWeights(Sequence[torch.Tensor]):
    """The matrices [p, q] of a group.

    Args:
        load: reads a matrix.
        matrices: those of the group.

    Attributes:
        current: name of the matrix that was last given out in turn; empty before the first and
            once they have all been taken.
    """

    def __init__(
        self, load: Callable[[PlannedMatrix], torch.Tensor], matrices: tuple[PlannedMatrix, ...]
    ) -> None:
        self._load = load
        self._matrices = matrices
        self.current = ""

    def __len__(self) -> int:
        return len(self._matrices)

    def __iter__(self) -> Iterator[torch.Tensor]:
        # The iterator of `Sequence` would hold each weight while the next one is read.
        for matrix in self._matrices:
            self.current = matrix.name
            yield self._load(matrix)
        self.current = ""

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return GroupWeights(self._load, self._matrices[index])
        return self._load(self._matrices[index])
