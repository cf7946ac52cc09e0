"""Training of the autoencoder: a fixed number of steps, the same numbers after any interruption.

Two phases share one cosine schedule (linear warm-up from a tenth over the first tenth, as HNeRV):

1. joint: encoder and decoder together. The decoder sees the latents as they would be stored, and
   gradients pass straight through to the encoder. What storing changes is measured on all latents
   at the start of each epoch; codebooks are learned again at sixteen moments.
2. settled, the last quarter: the latents are stored for good, codebook included, and the encoder
   is gone; the decoder alone learns to make the most of exactly what a reader will see. Latents
   that are stored as plain numbers, and frozen decoders, have no such phase.

Weights of the decoder are quantized in the second half of all epochs: steps that are taken from
weights which have found their size do better than steps that were there before them, at 6 bits as
at 2.

Every epoch's order of patches is drawn from the seed and the epoch's number. The state is a map of
tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reallm_compiler.codecs.autoencoders import hnerv_net as net
from reallm_compiler.codecs.autoencoders.hnerv_weights import Decoder
from reallm_compiler.codecs.callback import State, TrainingCallback
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Hnerv
from reallm_compiler.units import ceil_div

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises, and the part of it that they start from."""

SETTLED = 4
"""One of so many parts of the epochs belongs to the settled phase."""

QUANTIZED = 2
"""The decoder's weights are quantized after one of so many parts of the epochs."""

REFITS = 16
"""Times that codebooks are learned in the joint phase."""


class Latents(Protocol):
    """What happens to latents between encoder and decoder.

    Attributes:
        coarse: they are stored in few bits, so that it pays to settle them before the end.
    """

    coarse: bool

    def learn(self, latents: Tensor) -> None:
        """Learn codebooks, if there are any, from latents [n, z, h, w]."""
        ...

    def stored(self, latents: Tensor) -> Tensor:
        """Latents [n, z, h, w] as a reader would see them, with the codebooks learned last."""
        ...

    def state(self) -> State:
        """What `learn` has learned."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a network is trained on.

    Attributes:
        params: the stage.
        width: channels of the decoder's first stage.
        patches: [n, 1, ph, pw], of mean 0 and deviation 1 together.
        inside: the same shape, 1 on the matrix and 0 on its padding; None without padding.
        latents: how latents are stored.
        frozen: a decoder that stays as it is; None to train one.
        seed: of all random numbers.
    """

    params: Hnerv
    width: int
    patches: Tensor
    inside: Tensor | None
    latents: Latents
    frozen: net.DecoderTensors | None
    seed: int


class Trainer:
    """One training, from its start or from a saved state.

    Args:
        task: what is learned.

    Attributes:
        decoder: the decoder in training; None if it is frozen.
    """

    def __init__(self, task: Training) -> None:
        generator = torch.Generator().manual_seed(task.seed)
        device = task.patches.device
        self.task = task
        self.decoder: Decoder | None = None
        if task.frozen is None:
            self.decoder = Decoder(task.params, task.width, generator).to(device)
        self.encoder = net.Encoder(task.params, generator).to(device)
        self.epoch = 0
        self._quantizes_at = task.params.epochs // QUANTIZED
        self._settles_at = task.params.epochs
        if self.decoder is not None and task.latents.coarse:
            self._settles_at -= task.params.epochs // SETTLED
        # What the decoder sees: latents plus `shift` while joint; once settled `fixed`, which is
        # `raw` as it is stored.
        self._shift: Tensor | None = None
        self._raw: Tensor | None = None
        self._fixed: Tensor | None = None
        self._optimizer = self._new_optimizer()

    def run(self, callback: TrainingCallback) -> Tensor:
        """Train to the end.

        Returns:
            the latents [n, z, h, w] before they are stored.

        Raises:
            CodecError: the loss became NaN or infinite.
        """
        saved = callback.saved_state()
        if saved is not None:
            self._restore(saved)
        epochs = self.task.params.epochs
        while self.epoch < epochs:
            if self.epoch == self._quantizes_at and self.decoder is not None:
                self.decoder.start_quantizing()
            if self.epoch == self._settles_at:
                self._settle()
            loss = self._epoch()
            self.epoch += 1
            error = _Error(loss, last=self.epoch == epochs)
            callback.on_epoch_end(self.epoch, epochs, error, self._state)
        if self._raw is None:
            self._raw = self._encode()
            self.task.latents.learn(self._raw)
        return self._raw

    def _epoch(self) -> Tensor:
        """One pass over all patches; returns the mean squared error, on the device."""
        task = self.task
        count = len(task.patches)
        if self._fixed is None:
            self._measure_shift()
        seed = (task.seed + 0x9E3779B97F4A7C15 * (self.epoch + 1)) % 2**63
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        total = torch.zeros((), dtype=torch.float64, device=task.patches.device)
        size = task.params.batch
        steps = ceil_div(count, size)
        for step in range(steps):
            index = order[step * size : (step + 1) * size].to(task.patches.device)
            self._set_rate((self.epoch * steps + step) / (task.params.epochs * steps))
            wrong = self._wrong(index)
            self._optimizer.zero_grad(set_to_none=True)
            # Every patch weighs alike, whatever the size of the last batch.
            (wrong / len(index)).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += wrong.detach()
        inside = 1.0 if task.inside is None else task.inside.mean(dtype=torch.float64)
        return total / (count * inside)

    def _wrong(self, index: Tensor) -> Tensor:
        """Sum over the patches `index` of their mean squared errors."""
        task = self.task
        patches = task.patches[index]
        with _mixed(patches.device):
            if self._fixed is not None:
                latents = self._fixed[index]
            else:
                latents = self.encoder(patches)
                assert self._shift is not None
                latents = latents.float() + self._shift[index]
            decoded = self._decode(latents)
        wrong = (decoded.float() - patches).square()
        if task.inside is not None:
            wrong = wrong * task.inside[index]
        return wrong.sum() / patches[0].numel()

    def _decode(self, latents: Tensor) -> Tensor:
        if self.task.frozen is not None:
            return net.decode(self.task.params, self.task.frozen, latents)
        assert self.decoder is not None
        decoded: Tensor = self.decoder(latents)
        return decoded

    @torch.no_grad()
    def _encode(self) -> Tensor:
        """Latents [n, z, h, w] of all patches, in full precision."""
        parts = torch.split(self.task.patches, self.task.params.batch)
        latents = torch.cat([self.encoder(part) for part in parts])
        if not torch.isfinite(latents).all():
            raise _diverged()
        return latents

    def _measure_shift(self) -> None:
        joint = self._settles_at
        latents = self._encode()
        if self.epoch * REFITS % joint < REFITS:
            self.task.latents.learn(latents)
        self._shift = self.task.latents.stored(latents) - latents

    def _settle(self) -> None:
        self._raw = self._encode()
        self.task.latents.learn(self._raw)
        self._fixed = self.task.latents.stored(self._raw)
        moments = self._optimizer.state_dict()["state"]
        self._optimizer = self._new_optimizer()
        kept = range(len(self._trained()))
        self._load_moments({index: moments[index] for index in kept if index in moments})

    def _trained(self) -> list[torch.nn.Parameter]:
        """Parameters that learn, the decoder's first."""
        parameters = [] if self.decoder is None else list(self.decoder.parameters())
        return parameters if self._fixed is not None else [*parameters, *self.encoder.parameters()]

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._trained(), lr=self.task.params.lr, foreach=False)

    def _set_rate(self, done: float) -> None:
        if done < WARM_UP:
            factor = WARM_UP + (1 - WARM_UP) * done / WARM_UP
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
        self._optimizer.param_groups[0]["lr"] = self.task.params.lr * factor

    def _state(self) -> State:
        state: State = {"epoch": torch.tensor(self.epoch)}
        for name, module in (("decoder", self.decoder), ("encoder", self.encoder)):
            if module is not None:
                state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        if self._raw is not None:
            state["raw"] = self._raw
        state |= {f"latents.{key}": value for key, value in self.task.latents.state().items()}
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        device = self.task.patches.device
        self.epoch = int(state["epoch"])
        for name, module in (("decoder", self.decoder), ("encoder", self.encoder)):
            if module is not None:
                module.load_state_dict(_below(state, name))
        if self.decoder is not None:
            self.decoder.quantized = self.task.params.qat and self.epoch > self._quantizes_at
        self.task.latents.restore(
            {key: value.to(device) for key, value in _below(state, "latents").items()}
        )
        if "raw" in state:
            self._raw = state["raw"].to(device)
            self._fixed = self.task.latents.stored(self._raw)
            self._optimizer = self._new_optimizer()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(state, "adam").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self._load_moments(moments)

    def _load_moments(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        fresh = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**fresh, "state": dict(moments)})


def _below(state: Mapping[str, Tensor], name: str) -> State:
    return {
        key.removeprefix(f"{name}."): value
        for key, value in state.items()
        if key.startswith(f"{name}.")
    }


def _mixed(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 arithmetic on a GPU, where it is several times faster; none on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


class _Error:
    """The relative error of an epoch, computed when it is asked for: asking waits for a GPU."""

    def __init__(self, loss: Tensor, *, last: bool) -> None:
        self._loss = loss
        if last:
            self()

    def __call__(self) -> float:
        value = float(self._loss)
        if not math.isfinite(value):
            raise _diverged()
        return math.sqrt(value)


def _diverged() -> CodecError:
    return CodecError(
        "the training of an autoencoder has diverged: its loss became NaN or infinite",
        hint="use a smaller `lr`",
    )
