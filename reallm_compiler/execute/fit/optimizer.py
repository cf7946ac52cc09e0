"""The steps by which blocks learn: Adam, or signs of gradients alone, with a state to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from reallm_compiler.runs.optimizer import Adam


class Optimizer(Protocol):
    """Steps of some parameters."""

    def step(self, rates: Sequence[float]) -> None:
        """One step down the gradients, which are then forgotten; a rate for each parameter."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What steps depend on beside parameters and gradients."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        ...


class Signs:
    """Each number moves by the learning rate, against the sign of its gradient (AutoRound)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters.values()

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """See `Optimizer`."""
        for parameter, rate in zip(self._parameters, rates, strict=True):
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign_(), alpha=rate)
                parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


OPTIMIZERS: Mapping[str, Callable[[Mapping[str, nn.Parameter]], Optimizer]] = {
    "adam": Adam,
    "sign": Signs,
}
