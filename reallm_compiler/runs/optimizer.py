"""Adam with a state that can be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Adam:
    """Adam over named parameters, whose state can be stored and taken up again.

    Args:
        parameters: what is tuned, by name.
        betas: decay of the two moments.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.parameters = dict(parameters)
        groups = [{"params": [parameter]} for parameter in self.parameters.values()]
        self._adam = torch.optim.Adam(groups, betas=betas, foreach=False)

    def step(self, lr: float | Sequence[float]) -> None:
        """One step down the gradients, which are then forgotten; one rate, or each parameter's."""
        groups = self._adam.param_groups
        rates = [lr] * len(groups) if isinstance(lr, float) else lr
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
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
