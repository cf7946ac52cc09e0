"""The optimizer: learning rate by step, and Adam with a state that can be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn


def rate(
    step: int, steps: int, *, lr: float, warmup: float, schedule: Literal["constant", "cosine"]
) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant or half a cosine to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return lr * (step + 1) / rising
    if schedule == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def restore(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Put values into parameters, by name."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


class Adam:
    """Adam over named parameters, whose state can be stored and taken up again.

    Args:
        parameters: what is tuned, by name.
        betas: decay of the two moments.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], betas: tuple[float, float]) -> None:
        self.parameters = dict(parameters)
        self._adam = torch.optim.Adam(self.parameters.values(), betas=betas, foreach=False)

    def step(self, lr: float) -> None:
        """One step down the gradients, which are then forgotten."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The moments and counts, by parameter's name."""
        found = {}
        for name, parameter in self.parameters.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value.detach().cpu()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        for name, parameter in self.parameters.items():
            own = {
                key: state[f"{name}/{key}"].to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}/{key}" in state
            }
            if own:
                self._adam.state[parameter] = {key: value.clone() for key, value in own.items()}
