"""What an error of a matrix costs where no gradients were measured: the model is run with errors.

Codes of few bits decode to less than the weights: W^ = (1 - shrink) W + rest, and only the rest is
much like noise. Noise meets all directions alike; a smaller matrix does less where it does most,
which can cost fifty times as much as noise of that size. So the model is run with Gaussian noise in
one matrix at a time, and with that matrix made smaller, and the KL divergence from the original is
measured on a text that the model has written itself. For small errors it is linear in both squares:

    KL = noise (||E||^2 / ||W||^2 - shrink^2) + shrinking shrink^2.

Smaller matrices work together, as `search.joint` says. So what a smaller matrix does to the logits
is kept too, as the direction of p^(1/2) (log q - log p) over all tokens, in few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.runner import THREADS
from reallm_compiler.models.joined import Location
from reallm_compiler.models.streamed import StreamedModel
from reallm_compiler.models.text_models import run
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.tasks import Task, TaskResult
from reallm_compiler.search.sketch import BUCKETS, random_signs, sketch

SIZE = 1 / 16
"""||E||^2 / ||W||^2 of the noise: about that of two bits a weight."""

SHRINK = 1 / 8
"""The share by which a matrix is made smaller: about that of one and a half bits a weight."""

TOGETHER = 1 / 2
"""The part of what smaller matrices cost that follows the sum of their changes. For small errors it
is all; with errors as large as those of two bits changes cancel less than their products say, and a
choice must not rest on that. docs/log.md has what other parts do.
"""

RUN = 1 << 25
"""Logits that are computed at once, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slopes:
    """What errors of one matrix cost, in nats per token.

    Attributes:
        noise: KL by ||E||^2 / ||W||^2 of an error like noise.
        shrinking: KL by the square of the share by which the matrix is smaller.
        direction: float32 [BUCKETS], how the logits change then: a sketch of norm 1, or zeros.
    """

    noise: float
    shrinking: float
    direction: NDArray[np.float32] = field(compare=False)

    def kl(self, error: float, shrink: float) -> float:
        """Of coding with a relative squared error, a part of which is that W^ is smaller."""
        return self.noise * max(0.0, error - shrink**2) + self.shrinking * shrink**2

    def shift(self, shrink: float) -> float:
        """Size of the change of the logits by a smaller matrix that adds up with those by others.

        Its square is `TOGETHER` of the KL that it causes alone.

        Args:
            shrink: the share by which the matrix is smaller.
        """
        return shrink * math.sqrt(TOGETHER * self.shrinking)

    def facts(self) -> dict[str, str]:
        """The facts of an entry of the cache."""
        return {"noise": self.noise.hex(), "shrinking": self.shrinking.hex()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of an entry of the cache."""
        return {"direction": torch.tensor(self.direction)}

    @staticmethod
    def of(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Slopes | None:
        """What an entry of the cache says; None if it is not one of these."""
        try:
            noise, shrinking = (float.fromhex(facts[name]) for name in ("noise", "shrinking"))
            direction = tensors["direction"]
        except (KeyError, ValueError, OverflowError):
            return None
        known = 0 <= noise < math.inf and 0 <= shrinking < math.inf
        fits = direction.shape == (BUCKETS,) and direction.dtype == torch.float32
        if not known or not fits or not bool(direction.isfinite().all()):
            return None
        return Slopes(noise=noise, shrinking=shrinking, direction=direction.numpy())


@dataclass(frozen=True, kw_only=True, slots=True)
class SlopesResult(TaskResult):
    """The slopes of one matrix."""

    slopes: Slopes


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseJob:
    """All that the runs with errors have in common (`runs.job.Job`).

    Attributes:
        inventory: of the checkpoint.
        facts: the matrices.
        ids: int64 [n, t], the text.
        seed: of the noise.
        device: where the model runs.
    """

    inventory: Inventory
    facts: tuple[MatrixFact, ...]
    ids: Tensor
    seed: int
    device: torch.device

    @contextmanager
    def open(self, context: Context) -> Iterator[NoiseRunner]:
        """A runner in this process."""
        with fixed_numerics(THREADS, self.device), torch.inference_mode():
            yield NoiseRunner(self)


class NoiseRunner:
    """Runs the model with an error in one matrix (`runs.job.Runner`).

    Args:
        job: what is run.
    """

    def __init__(self, job: NoiseJob) -> None:
        self._job = job
        self._model = _Views(job.inventory, job.facts, job.device, whole=True, error=CompileError)
        vocabulary = int(self._model.model.config.get_text_config().vocab_size)
        step = max(1, RUN // (vocabulary * job.ids.shape[1]))
        self._parts = torch.split(job.ids.to(job.device), step)
        self._signs = random_signs((*job.ids.shape, vocabulary), job.seed).to(job.device)
        self._expected = [self._predicted(ids) for ids in self._parts]  # [b, t, v] each

    def run(self, task: Task) -> SlopesResult:
        """The slopes of the matrix that the task is called by.

        Raises:
            CompileError: it is no parameter of the model, or predictions are not finite.
        """
        weight = self._model.views.get(task.key)
        if weight is None:
            raise CompileError(
                "this matrix cannot be changed: it is no parameter of the model as it is",
                location=task.key,
                hint="measure statistics with `reallm calibrate`, or leave it out of `allocate`",
            )
        kept = weight.clone()
        generator = torch.Generator().manual_seed(seed_for(self._job.seed, f"noise/{task.key}"))
        noise = torch.randn(kept.shape, generator=generator).to(kept.device)
        size = float(kept.square().sum(dtype=torch.float64))
        own = float(noise.square().sum(dtype=torch.float64))
        with oom_to_error(task.title):
            weight.add_(noise, alpha=math.sqrt(SIZE * size / own))
            with_noise = self._kl() / SIZE
            torch.mul(kept, 1 - SHRINK, out=weight)
            moved = torch.zeros(BUCKETS, device=kept.device)
            smaller = self._kl(moved) / SHRINK**2
            weight.copy_(kept)
            norm = float(torch.linalg.vector_norm(moved))
        if not math.isfinite(with_noise + smaller + norm):
            raise CompileError(
                "with an error in this matrix the model predicts numbers that are not finite",
                location=task.key,
                hint="measure statistics with `reallm calibrate`, or leave it out of `allocate`",
            )
        found = Slopes(
            noise=max(0.0, with_noise),
            shrinking=max(0.0, smaller),
            direction=(moved / (norm or 1.0)).cpu().numpy(),
        )
        return SlopesResult(task=task.key, slopes=found)

    def _kl(self, moved: Tensor | None = None) -> float:
        """KL of the model as it is now, in nats per token.

        Args:
            moved: float32 [BUCKETS], to which the sketch of p^(1/2) (log q - log p) is added.
        """
        total = 0.0
        signs = iter(self._signs)
        for ids, expected in zip(self._parts, self._expected, strict=True):
            predicted = self._predicted(ids)
            total += _divergence(expected, predicted)
            if moved is not None:
                for log_p, log_q in zip(expected, predicted, strict=True):  # [t, v] each
                    change = torch.where(log_p.isfinite(), log_q - log_p, 0.0)
                    moved += sketch((log_p / 2).exp() * change, next(signs))
        return total / self._job.ids.numel()

    def _predicted(self, ids: Tensor) -> Tensor:
        """float32 [b, t, v]: log-probabilities."""
        return run(self._model.model, ids, None, CompileError).float().log_softmax(-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    """The sum over tokens of KL(p || q) in nats, of log-probabilities [b, t, v].

    With d = log q - log p it is the sum of p (e^d - 1 - d), of which no term is negative: where q
    is hardly another one, the terms of the plain sum of -p d all but cancel, and float32 loses it.
    """
    total = 0.0
    for old, new in zip(log_p, log_q, strict=True):  # a sequence at a time
        p, difference = old.exp(), new - old
        terms = torch.where(p > 0, p * (torch.expm1(difference) - difference), 0.0)
        total += float(terms.sum(dtype=torch.float64))
    return total


class _Views(StreamedModel):
    """A model whose matrices can be changed where they lie.

    Attributes:
        views: each matrix [p, q], by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of the base
        self.views: dict[str, Tensor] = {}
        super().__init__(*args, **kwargs)

    def _filled(self, data: Tensor, inside: list[Location]) -> None:
        for one in inside:
            offset = int(data.storage_offset()) + one.offset
            self.views[one.name] = data.as_strided(one.shape, one.strides, offset)
