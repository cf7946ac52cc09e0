"""One block learns: the mean squared error of its output goes down, and the best state is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.callback import State, TrainingCallback
from reallm_compiler.execute.fit.blocks import Weights
from reallm_compiler.execute.fit.optimizer import OPTIMIZERS, Optimizer
from reallm_compiler.models.sequences import permutation
from reallm_compiler.runs.state import under
from reallm_compiler.stages import BlockFit, Learnable

Error = Callable[[Tensor, Weights], Tensor]
"""Indices of sequences, and weights -> the mean squared error of the block's output, as a graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """Something that learns.

    Attributes:
        learnable: by which entry of `learn`.
        parameter: what changes.
        project: puts it back within its bounds after a step.
    """

    learnable: Learnable
    parameter: nn.Parameter
    project: Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a block has learned.

    Attributes:
        before, after: the error before the first epoch and of what was kept.
        lost: where the error became NaN or infinite: epoch and step, from 1; None if nowhere.
    """

    before: float
    after: float
    lost: tuple[int, int] | None


class Training:
    """The training of one block.

    Args:
        fit: what and how.
        learned: what learns, by name.
        weights: makes the weights.
        error: of the block with them.
        samples: sequences.
        seed: of their order.
        label: the block's own, so that no two have the same order.
        scale: mean square of the output, against which errors are reported.
        callback: reports, saves and stops.
    """

    def __init__(
        self,
        fit: BlockFit,
        learned: Mapping[str, Learned],
        weights: Callable[[], Weights],
        error: Error,
        samples: int,
        seed: int,
        label: str,
        scale: float,
        callback: TrainingCallback,
    ) -> None:
        self._fit = fit
        self._learned = dict(learned)
        self._weights = weights
        self._error = error
        self._samples = samples
        self._seed = seed
        self._label = label
        self._scale = scale
        self._callback = callback
        self._batch = min(fit.batch, samples)

    def run(self) -> Outcome:
        """Learn, from where an interrupted training stood; parameters end as the best ones."""
        optimizer = self._optimizer()
        best = self._values()
        saved = self._callback.saved_state()
        if saved is None:
            epoch, first = 0, self._whole_error()
            least = first
        else:
            epoch = int(saved["epoch"])
            first, least = (float(value) for value in saved["errors"])
            self._restore(under("theta/", saved))
            best = under("best/", saved)
            optimizer.load(under("optimizer/", saved))
        lost = None
        while epoch < self._fit.epochs:
            lost = self._epoch(epoch, optimizer)
            if lost is not None:
                break
            epoch += 1
            error = self._whole_error()
            if error < least:
                least, best = error, self._values()
            errors = torch.tensor([first, least], dtype=torch.float64)
            self._callback.on_epoch_end(
                epoch,
                self._fit.epochs,
                partial(self._relative, error),
                partial(self._state, epoch, errors, best, optimizer),
            )
        self._restore(best)
        return Outcome(before=first, after=least, lost=lost)

    def _epoch(self, epoch: int, optimizer: Optimizer) -> tuple[int, int] | None:
        """One pass; the epoch and step at which the error became NaN or infinite, or None."""
        fit, count = self._fit, self._samples // self._batch
        order = permutation(self._samples, self._seed, "fit", self._label, epoch)
        for step in range(count):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            error = self._error(chosen, self._weights())
            if not math.isfinite(float(error.detach())):
                return epoch + 1, step + 1
            error.backward()  # type: ignore[no-untyped-call]
            left = 1 - (epoch * count + step) / (fit.epochs * count)
            factor = left if fit.schedule == "linear" else 1.0
            optimizer.step([factor * fit.rate(one.learnable) for one in self._learned.values()])
            for one in self._learned.values():
                one.project()
        return None

    @torch.no_grad()
    def _whole_error(self) -> float:
        """The mean squared error on all sequences; infinite where it is NaN."""
        total, weights = 0.0, self._weights()
        for indices in torch.split(torch.arange(self._samples), self._batch):
            total += float(self._error(indices, weights)) * len(indices)
        return total / self._samples if math.isfinite(total) else math.inf

    def _relative(self, error: float) -> float:
        return math.sqrt(error / self._scale) if self._scale else 0.0

    def _optimizer(self) -> Optimizer:
        parameters = {name: one.parameter for name, one in self._learned.items()}
        return OPTIMIZERS[self._fit.optimizer](parameters)

    def _values(self) -> dict[str, Tensor]:
        return {name: one.parameter.detach().cpu().clone() for name, one in self._learned.items()}

    def _restore(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, one in self._learned.items():
                one.parameter.copy_(values[name])

    def _state(
        self, epoch: int, errors: Tensor, best: Mapping[str, Tensor], optimizer: Optimizer
    ) -> State:
        return {
            "epoch": torch.tensor(epoch),
            "errors": errors,
            **{f"theta/{name}": value for name, value in self._values().items()},
            **{f"best/{name}": value for name, value in best.items()},
            **{f"optimizer/{name}": value for name, value in optimizer.state().items()},
        }
