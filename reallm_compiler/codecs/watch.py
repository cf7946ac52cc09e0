"""Who looks on while a network is trained, tells of it, and keeps its state.

The codecs only call; saving, progress and stopping are the business of whoever compiles. When a
state is saved changes nothing in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]
"""What a training can go on from: tensors on the CPU by name."""


class Watch(Protocol):
    """Looks on a training."""

    def saved(self) -> Mapping[str, Tensor] | None:
        """The state of an interrupted training, if there is one."""
        ...

    def after_epoch(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """An epoch has ended; may tell of it, keep its state, or raise to stop.

        Args:
            epoch: how many are done.
            epochs: how many there will be.
            error: gives the relative error over the last epoch.
            state: gives the state from which training can go on.
        """
        ...


class Unwatched:
    """Nobody looks on."""

    def saved(self) -> None:
        """Nothing was saved."""
        return

    def after_epoch(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """Nothing happens."""
