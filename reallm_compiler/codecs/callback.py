"""What is called while a network is trained, to report, to save its state, and to stop.

The codecs only call; saving, progress and stopping are the business of whoever compiles. When a
state is saved changes nothing in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]
"""What a training can go on from: tensors on the CPU by name."""


class TrainingCallback(Protocol):
    """Called by a training."""

    def saved_state(self) -> Mapping[str, Tensor] | None:
        """The state of an interrupted training, if there is one."""
        ...

    def on_epoch_end(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """An epoch has ended; may report it, save its state, or raise to stop.

        Args:
            epoch: how many are done.
            epochs: how many there will be.
            error: gives the relative error over the last epoch.
            state: gives the state from which training can go on.
        """
        ...


class NoCallback:
    """Does nothing."""

    def saved_state(self) -> None:
        """Nothing was saved."""
        return

    def on_epoch_end(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """Nothing happens."""
