"""The steps by which blocks learn: Adam, or signs of gradients alone, with a state to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


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

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

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


class Adam:
    """Adam (Kingma and Ba) with its usual settings but the rates."""

    KEYS = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        groups = [{"params": [parameter]} for parameter in parameters]
        self._parameters = parameters
        self._adam = torch.optim.Adam(groups, foreach=False)

    def step(self, rates: Sequence[float]) -> None:
        """See `Optimizer`."""
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The moments and counts, by number of the parameter."""
        return {
            f"{number}/{key}": value.detach().cpu().clone()
            for number, parameter in enumerate(self._parameters)
            for key, value in self._adam.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        for number, parameter in enumerate(self._parameters):
            found = {
                key: state[f"{number}/{key}"] for key in self.KEYS if f"{number}/{key}" in state
            }
            if found:
                self._adam.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in found.items()
                }


OPTIMIZERS: Mapping[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "adam": Adam,
    "sign": Signs,
}
