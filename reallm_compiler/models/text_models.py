"""Which models predict text, how much of it they take at once, and whether they do so honestly.

A perplexity, and tuning on a text, need a model that gives the probabilities of the next token from
the tokens before it. Its class says most of that before a weight is read; the rest is tried on a
few tokens, as a class may be causal or not by its config (`is_decoder`), and a tokenizer may not be
the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.errors import EvaluationError, ReallmError, SourceError
from reallm_compiler.models.build import ModelFiles, class_of
from reallm_compiler.models.tokenizer import load_tokenizer

PROBE = 16
"""Tokens that a model is tried on."""

# What configurations call the number of positions, newest name first.
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)


def text_tokenizer(files: ModelFiles, *, use: str = "read", hint: str = "") -> Any:  # noqa: ANN401
    """The tokenizer of a model whose class predicts text.

    Args:
        files: of the model.
        use: what shall be done to a text, as messages say it.
        hint: what else to do about a missing one.

    Raises:
        SourceError: the model predicts no text, or has no tokenizer, or one that cannot be loaded.
    """
    check_predicts_text(files)
    found = load_tokenizer(files.small, files.label)
    if found is None:
        raise SourceError(
            f"the model has no tokenizer, so no text can be {use}",
            location=files.label,
            hint=f"put its tokenizer.json beside config.json{hint}",
        )
    return found


def check_predicts_text(files: ModelFiles) -> None:
    """Refuse a model whose class does not predict the next token of a text, before it is built.

    Raises:
        SourceError: it is none; or the config makes no class.
    """
    from transformers.models.auto import modeling_auto as auto

    config, made = class_of(files)
    known: set[str] = set()
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):
        entries: list[Any] = [*mapping.values()]
        for names in entries:
            known.update((names,) if isinstance(names, str) else names)
    why = None
    if getattr(config, "is_encoder_decoder", False):
        why = "an encoder reads another input first"
    elif made.__name__ not in known:
        why = "this class does not predict the next token of a text"
    if why is not None:
        raise SourceError(
            f"{made.__name__} has no perplexity: {why}",
            location=files.label,
            note="causal language models have one, and vision-language models that read text "
            "alone as such",
            hint="`reallm survey` measures the matrices of any model, and `reallm_compiler.load` "
            "gives this one to be evaluated by other means",
        )


def usable_positions(model: Any) -> int | None:  # noqa: ANN401 (transformers has no types)
    """The most tokens that a model takes at once; None if its config states no such number.

    A table of positions with a padding row (RoBERTa's) is used from the row after it on, so that
    of 514 positions 512 are usable.
    """
    config = model.config.get_text_config()
    values = (getattr(config, key, None) for key in _POSITION_KEYS)
    stated: int | None = next(
        (value for value in values if isinstance(value, int) and value > 0), None
    )
    if stated is None:
        return None
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if table and module.padding_idx is not None and module.num_embeddings == stated:
            first: int = module.padding_idx + 1
            return stated - first
    return stated


def check_reads(
    model: Any,  # noqa: ANN401
    window: Sequence[int],
    largest: int,
    error: type[ReallmError] = EvaluationError,
) -> None:
    """Try a model on the first tokens of a text.

    Args:
        model: a model that `check_predicts_text` has let through.
        window: the tokens of the first window; two at least.
        largest: the largest token of all windows.
        error: what to raise.

    Raises:
        ReallmError: of the class `error`: a token is beyond the vocabulary, the model cannot be run
            on text alone, or what it predicts depends on what comes later.
    """
    rows = _vocabulary(model)
    if rows is not None and largest >= rows:
        raise _other_vocabulary(largest, rows, error)
    first = list(window[:PROBE])
    other = next((token for token in window if token != first[-1]), first[-1])
    with torch.no_grad():  # not inference mode: layers may keep what they make
        logits = run(model, torch.tensor([first, [*first[:-1], other]]), None, error)  # [2, t, v]
    if logits.shape[-1] <= largest:
        raise _other_vocabulary(largest, logits.shape[-1], error)
    ours, theirs = logits.float().cpu()  # [t, v]
    # What is computed in another order, as for experts, differs by rounding.
    allowed = torch.finfo(logits.dtype).eps ** 0.75 * float(ours.abs().max())
    if float((ours - theirs)[:-1].abs().max()) > allowed:
        raise error(
            f"{type(model).__name__} has no perplexity with this config: what it predicts "
            "for a token depends on that token and later ones",
            note="it reads in both directions",
            hint="a decoder of this family says `is_decoder: true` in config.json",
        )


def run(
    model: Any,  # noqa: ANN401
    ids: Tensor,
    mask: Tensor | None,
    error: type[ReallmError] = EvaluationError,
    cache: Any = None,  # noqa: ANN401
) -> Tensor:
    """Logits [b, t, v] of token ids [b, t], in the model's type and on its device.

    Args:
        model: the model.
        ids: the tokens.
        mask: [b, t], or with a cache [b, tokens before + t]; None where all are real.
        error: what to raise.
        cache: transformers' own, of the tokens before; these are added to it. None without any.

    Raises:
        ReallmError: of the class `error`: the model does not take them, or memory runs out.
    """
    device = model.device
    mask = None if mask is None else mask.to(device)
    try:
        cached = {"use_cache": cache is not None, "past_key_values": cache}
        output = model(input_ids=ids.to(device), attention_mask=mask, **cached)
        logits: Tensor = output.logits
    except torch.cuda.OutOfMemoryError as found:
        raise error(
            f"the device ran out of memory on a batch of {ids.shape[0]} windows",
            hint="give a smaller batch or window, or evaluate on the CPU",
        ) from found
    except ReallmError:
        raise
    except Exception as found:  # whatever a class raises for text that it does not take
        reason = (str(found).strip().splitlines() or [""])[0]
        raise error(
            f"{type(model).__name__} cannot be run on {ids.shape[1]} tokens of text alone",
            note=f"{type(found).__name__}: {reason}",
            hint="a smaller window may fit its positions" if ids.shape[1] > PROBE else None,
        ) from found
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise error(
            f"{type(model).__name__} gives no logits for each token: they are "
            f"{' x '.join(map(str, logits.shape))} for {' x '.join(map(str, ids.shape))} tokens"
        )
    return logits


def _vocabulary(model: Any) -> int | None:  # noqa: ANN401
    """Rows of the token embedding; None where a class has none of the usual form."""
    try:
        rows: int = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):
        return None
    return rows


def _other_vocabulary(largest: int, rows: int, error: type[ReallmError]) -> ReallmError:
    return error(
        f"the tokenizer gives token {largest}, and the model knows {rows} tokens",
        note="the tokenizer is not this model's own",
    )
