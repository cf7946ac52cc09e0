"""Losses over the vocabulary, a chunk of positions at a time.

Log-probabilities of a batch of 4,096 tokens over a vocabulary of 128,256 are 2 GB in float32, and
the divergence of two models makes five of them. So a model is run to its last hidden states once,
and what is behind (the head, and what an architecture does with its logits) for one chunk of
positions after the other; the gradient of each chunk goes back to its hidden states at once:

    dL/dh = [dL_1/dh_1, dL_2/dh_2, ...],   then the backward pass of the model from dL/dh

The sums are those of all positions together, but for the order of additions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reallm_compiler.finetune.memory import CHUNK_BYTES


class _Caught(Exception):  # noqa: N818 - no error: it ends a forward pass early
    def __init__(self, output: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.output = output


class Headless:
    """A causal language model in two parts: up to its last hidden states, and from there on.

    Args:
        model: a model whose forward pass calls its base model once, and then works on each position
            of what that gives by itself. `splits` says whether it is such a one.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 (transformers has no types)
        self._model = model
        self._base = model.base_model

    @staticmethod
    def splits(model: Any, ids: Tensor) -> bool:  # noqa: ANN401
        """Whether the two parts make the logits of the whole; tried on tokens [b, t]."""
        if getattr(model, "base_model", model) is model:
            return False
        two = Headless(model)
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[:, ::2]
            try:
                hidden, rest = two.hidden(ids)
                parts = two.logits(hidden[:, ::2], rest)
            except Exception:  # whatever an architecture makes of it
                return False
        eps = torch.finfo(whole.dtype).eps
        close = 16 * eps * float(whole.abs().max())
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= close)

    def hidden(self, ids: Tensor) -> tuple[Tensor, Any]:
        """Last hidden states [b, t, d] for tokens [b, t], and what else the base model gave."""
        forward = self._base.forward

        def stop(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            raise _Caught(forward(*args, **kwargs))

        try:
            with _replaced(self._base, stop):
                self._model(input_ids=ids, use_cache=False)
        except _Caught as caught:
            return caught.output.last_hidden_state, caught.output
        raise RuntimeError("the model does not call its base model")

    def logits(self, hidden: Tensor, rest: Any) -> Tensor:  # noqa: ANN401
        """Logits [b, n, v] of hidden states [b, n, d]; `rest` is what `hidden` gave."""
        output = copy.copy(rest)
        output["last_hidden_state"] = hidden
        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        with _replaced(self._base, lambda *_, **__: output):
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits


@contextmanager
def _replaced(module: Any, forward: Any) -> Iterator[None]:  # noqa: ANN401
    """Let a module compute something else."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


class VocabularyLoss:
    """The summed loss of predicted tokens, in nats: of the text, or KL(teacher || model).

    Args:
        model: what is tuned.
        teacher: the original; None for the cross-entropy of the text.
        ids: two sequences or more [b, t], on which it is tried whether the models split.
    """

    def __init__(self, model: Any, teacher: Any, ids: Tensor) -> None:  # noqa: ANN401
        self._model, self._teacher = model, teacher
        self._parts: tuple[Headless, Headless | None] | None = None
        if Headless.splits(model, ids) and (teacher is None or Headless.splits(teacher, ids)):
            self._parts = Headless(model), None if teacher is None else Headless(teacher)

    def __call__(self, ids: Tensor, real: Tensor, backward: float | None = None) -> float:
        """The loss of a batch.

        Args:
            ids: tokens [b, t].
            real: bool [b, t - 1], whether each next token counts.
            backward: where given, gradients of so many times the loss are added to the parameters.
        """
        if self._parts is None:
            return self._whole(ids, real, backward)
        student, teacher = self._parts
        with torch.set_grad_enabled(backward is not None):
            hidden, rest = student.hidden(ids)
            chosen = hidden[:, :-1][real]  # [n, d]
        known, known_rest = None, None
        if teacher is not None:
            with torch.no_grad():
                made, known_rest = teacher.hidden(ids)
                known = made[:, :-1][real]
        target = ids[:, 1:][real]
        step = max(1, CHUNK_BYTES // (4 * self._model.config.get_text_config().vocab_size))
        gradient = torch.empty_like(chosen) if backward is not None else None
        total = 0.0
        for first in range(0, len(chosen), step):
            span = slice(first, first + step)
            part = chosen[span].detach().requires_grad_(backward is not None)
            with torch.no_grad():
                log_p = (
                    None
                    if teacher is None or known is None
                    else _log_softmax(teacher.logits(known[None, span], known_rest)[0])
                )
            with torch.set_grad_enabled(backward is not None):
                log_q = _log_softmax(student.logits(part[None], rest)[0])
                loss = _summed(log_q, log_p, target[span])
                if backward is not None and gradient is not None:
                    (found,) = _backward(loss * backward, [part])
                    gradient[span] = found
            total += float(loss.detach())
            del log_q, log_p, loss
        if gradient is not None:
            torch.autograd.backward(chosen, gradient)
        return total

    def _whole(self, ids: Tensor, real: Tensor, backward: float | None) -> float:
        """The loss of a batch in one piece, for models that do not split."""
        with torch.set_grad_enabled(backward is not None):
            log_q = _log_softmax(self._model(input_ids=ids, use_cache=False).logits[:, :-1][real])
            log_p = None
            if self._teacher is not None:
                with torch.no_grad():
                    logits = self._teacher(input_ids=ids, use_cache=False).logits
                    log_p = _log_softmax(logits[:, :-1][real])
            loss = _summed(log_q, log_p, ids[:, 1:][real])
            if backward is not None:
                torch.autograd.backward(loss * backward)
        return float(loss.detach())


def _backward(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of `inputs`; those of all parameters behind them are added up where they are."""
    torch.autograd.backward(loss)
    return [value.grad for value in inputs if value.grad is not None]


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _summed(log_q: Tensor, log_p: Tensor | None, target: Tensor) -> Tensor:
    """Cross-entropy of `target` [n], or KL(p || q), over log-probabilities [n, v]."""
    if log_p is None:
        chosen: Tensor = log_q.gather(1, target[:, None])
        return -chosen.sum()
    kl: Tensor = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return kl
