"""End-to-end tuning: all that is learned at once, against the text or the original.

`next_token` lowers the cross-entropy of the text, `distill` the divergence KL(original || model)
of the predictions, which needs the whole original in memory as well. The held-out loss is taken
before the first step and a few times on the way, and the best factors are kept. Where it has
become a multiple of what it was, the steps that are left are not made: they would not come back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.events import StepDone
from reallm_compiler.finetune.gradients import GradientSum
from reallm_compiler.finetune.loss import VocabularyLoss
from reallm_compiler.finetune.optimizer import rate, restore
from reallm_compiler.finetune.options import EndToEndOptions
from reallm_compiler.finetune.text import batch_indices
from reallm_compiler.finetune.tuning import Tuning
from reallm_compiler.models.blocks import Block
from reallm_compiler.models.sequences import Sequences
from reallm_compiler.runs.optimizer import Adam
from reallm_compiler.runs.state import under
from reallm_compiler.units import ceil_div

HELD_OUT_BATCH = 8
"""Sequences of a batch of the held-out ones."""

DIVERGED = 2
"""A held-out loss of so many times the one before any step has diverged."""

PROBE = 16
"""Tokens of the sequences on which it is tried whether a model runs in two parts."""


def steps_of(options: EndToEndOptions, sequences: int) -> int:
    """Steps on so many sequences."""
    if options.steps is not None:
        return options.steps
    each = options.batch * options.accumulation
    return max(1, round(options.epochs * sequences / each))


class EndToEnd:
    """The second stage of a run.

    Args:
        tuning: the run.
        teacher: the original, for `distill`; else None.

    Attributes:
        before: held-out loss at the beginning.
        least: the best held-out loss.
        losses: each held-out loss with the number of steps made before it.
        speed: steps per second of those made by this process; None without any.
    """

    def __init__(self, tuning: Tuning, teacher: Any) -> None:  # noqa: ANN401 (it has no types)
        self.processes = tuning.processes
        self.evenly = tuning.shards.active
        self.tunable = tuning.tunable
        self.train = tuning.train
        self.held_out = tuning.held_out
        self.options = tuning.options.e2e
        self.seed = tuning.options.seed
        self.state = tuning.state
        self.emit = tuning.emit
        self.device = tuning.device
        self.parameters = dict(self.tunable.parameters())
        self.before = self.least = math.nan
        self.losses: list[tuple[int, float]] = []
        self.speed: float | None = None
        self._best: dict[str, Tensor] = {}
        self._adam = Adam(self.parameters, self.options.betas)
        for value in self.parameters.values():
            value.requires_grad_(True)
        probe = self.train.ids[:2, :PROBE].to(self.device)
        self._loss = VocabularyLoss(self.tunable.model, teacher, probe)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return steps_of(self.options, len(self.train))

    @property
    def diverged(self) -> int | None:
        """The step after which the held-out loss had diverged, which was the last; None without."""
        step, loss = self.losses[-1] if self.losses else (0, math.nan)
        return step if loss > DIVERGED * self.before else None

    def run(
        self, position: dict[str, Any], tensors: dict[str, Tensor], blocks: list[dict[str, Any]]
    ) -> None:
        """Make all steps, from where an earlier run stood.

        Args:
            position: `step`, `before`, `least`, `losses`; empty to begin.
            tensors: Adam's moments and the best factors.
            blocks: what block-wise tuning has done, to be kept in the state.
        """
        step = int(position.get("step", 0))
        if position:
            self.before, self.least = float(position["before"]), float(position["least"])
            self.losses = [(int(at), float(loss)) for at, loss in position["losses"]]
            self._adam.load(under("adam/", tensors))
            self._best = {name: tensors[f"best/{name}"].to(self.device) for name in self.parameters}
        else:
            self.before = self.least = self._held_out(0)
            self._keep_best()
        began, first = time.monotonic(), step
        checked = 0.0
        while step < self.steps and self.diverged is None:
            loss = self._step(step, blocks)
            step += 1
            held = None
            if step == self.steps or self._check_after(step):
                started = time.monotonic()
                held = self._held_out(step)
                if held < self.least:
                    self.least = held
                    self._keep_best()
                checked += time.monotonic() - started
            self.speed = (step - first) / max(1e-9, time.monotonic() - began - checked)
            self.emit(StepDone(step=step, steps=self.steps, loss=loss, held_out=held))
            if self.state.due():
                self._save(step, blocks)
        restore(self.parameters, self._best)

    def _step(self, step: int, blocks: list[dict[str, Any]]) -> float:
        """One step of Adam; the loss of its sequences."""
        options = self.options
        batch = options.batch * options.accumulation
        at = batch_indices(step, batch, len(self.train), self.seed, "end to end")
        group = self.train.take(at)
        tokens = group.predicted
        total = 0.0
        gradients = GradientSum(self.processes, self.parameters, options.accumulation)
        made = {}
        for piece in self.processes.own_pieces(options.accumulation):
            part = group.take(range(piece * options.batch, (piece + 1) * options.batch))
            made[piece] = self._loss(*self._batch(part), backward=1 / tokens) / tokens
            gradients.add(piece)
        for value in self.processes.gathered(made, options.accumulation):
            if not math.isfinite(value):
                restore(self.parameters, self._best)
                self._adam = Adam(self.parameters, self.options.betas)
                self._save(step, blocks)
            self._check_finite(value, step)
            total += value
        gradients.finish()
        assert options.lr is not None  # FinetuneOptions.resolved
        self._adam.step(
            rate(step, self.steps, lr=options.lr, warmup=options.warmup, schedule=options.schedule)
        )
        return total

    def _batch(self, part: Sequences) -> tuple[Tensor, Tensor]:
        """Tokens [b, t], and bool [b, t - 1]: whether each next token counts."""
        longest = int(part.lengths.max())
        ids = part.ids[:, :longest].to(self.device)
        return ids, part.mask[:, 1:longest].to(self.device)

    def _held_out(self, step: int) -> float:
        # Sums depend on nothing but the held-out text, whatever the batch of training.
        pieces = ceil_div(len(self.held_out), HELD_OUT_BATCH)
        made = {}
        with torch.no_grad():
            for piece, own in self.processes.turns(pieces):
                if not own and not self.evenly:  # processes that share weights run together
                    continue
                at = piece * HELD_OUT_BATCH
                part = self.held_out.take(range(at, min(at + HELD_OUT_BATCH, len(self.held_out))))
                loss = self._loss(*self._batch(part))
                if own:
                    made[piece] = loss
        mean = sum(self.processes.gathered(made, pieces)) / self.held_out.predicted
        self._check_finite(mean, step)
        self.losses.append((step, mean))
        return mean

    def _check_after(self, step: int) -> bool:
        """Checks are spread evenly over the steps."""
        checks, steps = self.options.checks, self.steps
        return checks > 0 and step * checks // steps > (step - 1) * checks // steps

    def _keep_best(self) -> None:
        self._best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def _save(self, step: int, blocks: list[dict[str, Any]]) -> None:
        position = {
            "stage": "e2e",
            "step": step,
            "before": self.before,
            "least": self.least,
            "losses": self.losses,
            "blocks": blocks,
        }
        tensors: dict[str, Tensor] = {}
        tensors |= {f"tuned/{name}": value for name, value in self.parameters.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        tensors |= {f"adam/{name}": value for name, value in self._adam.state().items()}
        self.state.save(position, tensors)

    def _check_finite(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise FinetuneError(
                f"the loss is {value} at step {step} of {self.steps}, end to end",
                location="all blocks",
                note=f"the last good state is kept in {self.state.path}",
                hint="give a smaller learning rate",
            )


@contextmanager
def checkpointed(blocks: list[Block], wanted: bool) -> Iterator[None]:
    """Let each block compute its activations again in the backward pass."""
    if not wanted:
        yield
        return
    for block in blocks:
        block.module.forward = _again(block.module.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.module.forward


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
