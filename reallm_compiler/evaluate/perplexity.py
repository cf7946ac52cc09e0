"""Perplexity of a language model on a text, and its distance to a reference.

    loss            mean over predicted tokens of -log p(token | the tokens before it), in nats
    perplexity      exp(loss)
    bits_per_byte   the summed loss of the predicted tokens / ln 2 / evaluated bytes
    kl              mean over predicted tokens of KL(reference || model), in nats
    top1_agreement  the share of predicted tokens where both models' likeliest token is the same

Windows of equal length have equally many predictions, so the mean over tokens is the mean over
windows of each window's own loss, which is how the literature's scripts write it. Documents are
of unequal length; there the mean runs over tokens, so a long document weighs more.

The numerator of bits_per_byte has no term for the first token of a window while its bytes are in
the denominator: at a window of n tokens that lowers the figure by about 1/n. It compares models
at one window exactly, and windows of different length only roughly. Documents are free of this,
as BOS has no bytes.

The model gives the logits of one batch at once; the log-probabilities, in float32 whatever the
model's own type, are made for a few rows at a time, and sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.random_windows import cut_random
from reallm_compiler.evaluate.text import (
    Protocol,
    TokenWindows,
    check_same_tokenizer,
    cut_documents,
    cut_windows,
)
from reallm_compiler.models.text import LITERATURE_WINDOW, window_of
from reallm_compiler.models.text_models import check_reads, run, usable_positions
from reallm_compiler.progress import Progress, progress_callback

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NewCache = Callable[[], Any]
"""Gives an empty cache of keys and values, one of transformers' own classes."""

# Elements of one float32 block of log-probabilities: 32 MiB.
_BLOCK_ELEMENTS = 1 << 23
# exp of anything larger is no float64; a uniform guess over 2^32 tokens is 22 nats.
_LARGEST_LOSS = 700.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured, with what is needed to measure it again.

    Attributes:
        perplexity: exp(loss).
        loss: nats per predicted token.
        tokens: predicted tokens.
        window: tokens in a window, or the most tokens of a document with its BOS.
        windows: windows or documents that were evaluated.
        bits_per_byte: bits per evaluated UTF-8 byte.
        nbytes: evaluated UTF-8 bytes.
        dropped_tokens: tokens of the text that were not evaluated.
        protocol: `windows`, `documents` or `random windows`.
        kl: nats per predicted token from the reference to the model; None without a reference.
        top1_agreement: between 0 and 1; None without a reference.
        reference_perplexity: of the reference on the same windows; None without one.
    """

    perplexity: float
    loss: float
    tokens: int
    window: int
    windows: int
    bits_per_byte: float
    nbytes: int
    dropped_tokens: int
    protocol: Protocol
    kl: float | None = None
    top1_agreement: float | None = None
    reference_perplexity: float | None = None

    def to_json(self) -> dict[str, float | int | str]:
        """Plain data under stable keys; what needs a reference is left out without one."""
        plain: dict[str, float | int | str] = {
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "window": self.window,
            "windows": self.windows,
            "bits_per_byte": self.bits_per_byte,
            "loss": self.loss,
            "bytes": self.nbytes,
            "dropped_tokens": self.dropped_tokens,
            "protocol": self.protocol,
        }
        compared = {
            "kl": self.kl,
            "top1_agreement": self.top1_agreement,
            "reference_perplexity": self.reference_perplexity,
        }
        return plain | {key: value for key, value in compared.items() if value is not None}


@dataclass(kw_only=True, slots=True)
class _Sums:
    """Sums over predicted tokens, in float64."""

    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    agree: int = 0

    def add(self, other: _Sums) -> None:
        self.nll += other.nll
        self.reference_nll += other.reference_nll
        self.kl += other.kl
        self.agree += other.agree


def choose_window(window: int | None, models: Sequence[PreTrainedModel]) -> int:
    """The window to use: as asked for, or the smaller of 2048 and the models' positions.

    Raises:
        EvaluationError: the window asked for has more tokens than a model has positions.
    """
    return window_of(window, map(usable_positions, models), EvaluationError)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int | None = None,
    separator: str | None = None,
    reference: PreTrainedModel | None = None,
    reference_tokenizer: PreTrainedTokenizerBase | None = None,
    random_windows: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    new_cache: NewCache | None = None,
    kv_step: int = 1,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure `model` on `text`, by the protocols that `evaluate.text` describes.

    Args:
        model: a causal language model of transformers; it is put in evaluation mode.
        tokenizer: the model's tokenizer.
        text: the text as it is.
        window: tokens at once; without it the smaller of 2048 and the models' positions.
        separator: a marker between documents: each is then evaluated after a BOS by itself.
            Without it the text is cut into windows of equal length.
        reference: a model to compare with, such as the original one.
        reference_tokenizer: checked against `tokenizer` before anything is computed.
        random_windows: draw so many windows instead (see `evaluate.random_windows`).
        seed: of that draw.
        batch: windows at once; without it as many as 2048 tokens hold, at least one. It changes
            memory and speed, and the results only by rounding.
        new_cache: feed `model` a few tokens at a time, as `generate` does, through what this gives
            for each batch; None for whole windows at once. The reference has no cache.
        kv_step: tokens at a time with `new_cache`.
        device: where to move the models to; without it they stay where they are.
        progress: see `reallm_compiler.progress`; counts windows, after each batch.

    Raises:
        EvaluationError: the text does not fit the protocol, the tokenizers or vocabularies
            differ, a loss is not finite (with the window's number), or memory runs out.
    """
    models = [model] if reference is None else [model, reference]
    if kv_step < 1:
        raise EvaluationError(f"expected a step of at least 1 token, got {kv_step}")
    if batch is not None and batch < 1:
        raise EvaluationError(
            f"expected a batch of at least 1 window, got {batch}", hint="give 1 or more"
        )
    if reference_tokenizer is not None:
        check_same_tokenizer(tokenizer, reference_tokenizer, text)
    length = choose_window(window, models)
    if random_windows is not None:
        cut = cut_random(tokenizer, text, length, random_windows, separator=separator, seed=seed)
    elif separator is None:
        cut = cut_windows(tokenizer, text, length)
    else:
        cut = cut_documents(tokenizer, text, length, separator)
    modules: list[torch.nn.Module] = [*models]
    for module in modules:
        module.eval()
        if device is not None:
            module.to(device)
    largest = max(map(max, cut.sequences))
    for one in models:
        check_reads(one, cut.sequences[0], largest)
    at_once = batch if batch is not None else max(1, LITERATURE_WINDOW // length)
    sums = _Sums()
    total = len(cut.sequences)
    report = progress_callback(progress, "evaluate", "windows")
    for start in range(0, total, at_once):
        group = cut.sequences[start : start + at_once]
        for index, part in enumerate(_measure(model, reference, group, new_cache, kv_step)):
            _check_finite(part, cut, start + index)
            sums.add(part)
        report(start + len(group), total)
    return _summarise(sums, cut, compared=reference is not None)


def _summarise(sums: _Sums, cut: TokenWindows, *, compared: bool) -> Evaluation:
    tokens = cut.predicted
    return Evaluation(
        perplexity=_perplexity(sums.nll / tokens, "the model"),
        loss=sums.nll / tokens,
        tokens=tokens,
        window=cut.window,
        windows=len(cut.sequences),
        bits_per_byte=sums.nll / math.log(2) / cut.nbytes,
        nbytes=cut.nbytes,
        dropped_tokens=cut.dropped_tokens,
        protocol=cut.protocol,
        # Rounding can leave a divergence of nothing a hair below zero.
        kl=max(0.0, sums.kl / tokens) if compared else None,
        top1_agreement=sums.agree / tokens if compared else None,
        reference_perplexity=(
            _perplexity(sums.reference_nll / tokens, "the reference") if compared else None
        ),
    )


def _perplexity(loss: float, whose: str) -> float:
    if loss > _LARGEST_LOSS:
        raise EvaluationError(
            f"the loss of {whose} is {loss:.6g} nats per token",
            note="its perplexity is larger than any float64",
        )
    return math.exp(loss)


def _measure(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    group: Sequence[tuple[int, ...]],
    new_cache: NewCache | None,
    kv_step: int,
) -> list[_Sums]:
    """The sums of each sequence of one batch."""
    ids, mask = _pad(group)  # [b, t]
    with torch.inference_mode():
        if new_cache is None:
            logits = run(model, ids, mask)  # [b, t, v]
        else:
            logits = run_cached(model, ids, mask, new_cache(), kv_step)  # [b, t, v]
        expected = None if reference is None else run(reference, ids, mask)  # [b, t, v]
        if expected is not None and expected.shape != logits.shape:
            raise EvaluationError(
                "the model and the reference have different vocabularies: "
                f"{logits.shape[-1]} and {expected.shape[-1]} logits"
            )
        parts = []
        for row, sequence in enumerate(group):
            predictions = len(sequence) - 1
            parts.append(
                _sum_rows(
                    logits[row, :predictions],
                    ids[row, 1 : predictions + 1],
                    None if expected is None else expected[row, :predictions],
                )
            )
    return parts


def run_cached(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    cache: Any,  # noqa: ANN401 - of transformers
    step: int,
) -> Tensor:
    """Logits [b, t, v] of token ids [b, t], fed `step` tokens at a time through an empty cache."""
    parts = []
    for start in range(0, ids.shape[1], step):
        seen = None if mask is None else mask[:, : start + step]
        parts.append(run(model, ids[:, start : start + step], seen, cache=cache))
    return torch.cat(parts, dim=1)


def _pad(group: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor | None]:
    """Sequences as one int64 tensor, and a mask where their lengths differ.

    Padding is on the right, where no causal model can see it from a real token.
    """
    longest = max(map(len, group))
    ids = torch.tensor([[*ids, *[ids[0]] * (longest - len(ids))] for ids in group])  # [b, t]
    if all(len(sequence) == longest for sequence in group):
        return ids, None
    lengths = torch.tensor([len(sequence) for sequence in group])  # [b]
    return ids, (torch.arange(longest) < lengths[:, None]).to(torch.int64)  # [b, t]


def _sum_rows(logits: Tensor, targets: Tensor, expected: Tensor | None) -> _Sums:
    """Sums over the predictions of one sequence.

    Args:
        logits: [n, v] of the model.
        targets: [n] int64, the tokens that came.
        expected: [n, v] of the reference, on any device.
    """
    sums = _Sums()
    rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1])
    for at in range(0, logits.shape[0], rows):
        block = slice(at, at + rows)
        column = targets[block, None].to(logits.device)  # [m, 1]
        # float32: half-precision sums over a vocabulary lose the third digit of a perplexity.
        log_q = logits[block].float().log_softmax(dim=-1)  # [m, v]
        sums.nll -= _total(log_q.gather(1, column))
        if expected is None:
            continue
        log_p = expected[block].to(logits.device).float().log_softmax(dim=-1)  # [m, v]
        sums.reference_nll -= _total(log_p.gather(1, column))
        p = log_p.exp()  # [m, v]
        # A token that the reference rules out (p = 0) adds nothing, whatever the model gives it.
        terms = torch.where(p > 0, p * (log_p - log_q), 0.0)  # [m, v]
        sums.kl += _total(terms.sum(dim=-1))
        sums.agree += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())
    return sums


def _total(values: Tensor) -> float:
    """The sum in float64, on the CPU as not every device has that type."""
    return float(values.cpu().double().sum())


def _check_finite(part: _Sums, cut: TokenWindows, index: int) -> None:
    unit = "document" if cut.protocol == "documents" else "window"
    location = f"{unit} {index + 1} of {len(cut.sequences)}"
    hint = "verify the file, or evaluate in float32 if it was in a smaller type"
    for value, what in (
        (part.nll, "the model's loss"),
        (part.reference_nll, "the reference's loss"),
        (part.kl, "the divergence from the reference"),
    ):
        if not math.isfinite(value):
            raise EvaluationError(
                f"{what} is {value}, not a finite number", location=location, hint=hint
            )
