"""Models to evaluate, from a Hugging Face folder, a `.reallm` archive or a hub id.

On the CPU everything is computed in float32 unless another type is asked for: the stored values
are kept exactly (bfloat16 and float16 are part of float32), so a difference between two models
comes from their weights and not from rounding on the way. On another device the stored type is
kept, as large models do not fit otherwise.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.perplexity import Evaluation, evaluate
from reallm_compiler.evaluate.text import check_same_tokenizer, read_text
from reallm_compiler.models.build import ModelFiles, build_model
from reallm_compiler.models.text_models import text_tokenizer
from reallm_compiler.progress import Progress
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runtime.dtypes import resolve_dtype
from reallm_compiler.runtime.kv_cache import new_cache
from reallm_compiler.runtime.kv_settings import KvSource, kv_settings
from reallm_compiler.runtime.mapped import Mode
from reallm_compiler.runtime.models import open_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_for_evaluation(
    path: str | os.PathLike[str],
    *,
    mode: Mode = "dense",
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that predicts text and its tokenizer, ready to be evaluated.

    Args:
        path: a Hugging Face folder, a `.reallm` archive, or a hub id such as `owner/name`.
        mode: `dense`, or `packed`: run an archive from its codes, as for `load`.
        device: `cpu`, `cuda`, `cuda:1`, ... or `auto`: cuda where there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `source` for the stored type; without it
            float32 on the CPU and the stored type elsewhere.
        adapter: an adapter of the archive at `path`.
        decoder: where the trained decoders are that this archive uses but does not hold: a file,
            or a folder; beside the archive when None.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        progress: see `reallm_compiler.progress`; counts tensors that are read or decoded.

    Raises:
        SourceError: there is no such model, it is not a sound one, or of a class that has no
            perplexity.
        FormatError: the archive is damaged.
        EvaluationError: the device is not there, or the type is unknown.
    """
    where = choose_device(device, EvaluationError)
    chosen = _dtype(dtype, where)
    with open_files(
        path, mode=mode, dtype=chosen, adapter=adapter, decoder=decoder, allow_cost=allow_cost
    ) as files:
        tokenizer = _tokenizer(files)  # before the weights are read
        return _model(files, where, chosen, progress), tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, an archive or a hub id.

    Raises:
        SourceError: there is no such model, or it has no tokenizer.
    """
    with open_files(path) as files:
        return _tokenizer(files)


def evaluate_files(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    mode: Mode = "dense",
    window: int | None = None,
    separator: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    reference: str | os.PathLike[str] | None = None,
    random_windows: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    kv_cache: KvSource | None = None,
    kv_step: int = 1,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Progress | None = None,
    load_progress: Progress | None = None,
) -> Evaluation:
    """Measure the model at `model` on the text file `text`: the whole of `reallm eval`.

    What is cheap is checked first: the text, then classes and tokenizers, then the weights are
    read. The arguments are those of `load_for_evaluation` and `evaluate`, and so are the errors.
    `mode` is how `model` is run; a reference is decoded. `kv_cache` is what `load` takes; without
    it, windows are run as a whole, whatever the recipe of an archive says. `progress` counts
    windows; `load_progress` counts the tensors of each model before, by default as `progress`
    unless that is a function.
    """
    loading = load_progress
    if loading is None and progress is not None:
        loading = progress is True
    where = choose_device(device, EvaluationError)
    chosen = _dtype(dtype, where)
    content = read_text(text)
    cache = None if kv_cache is None else kv_settings(kv_cache)
    with ExitStack() as stack:
        files = stack.enter_context(
            open_files(
                model,
                mode=mode,
                dtype=chosen,
                adapter=adapter,
                decoder=decoder,
                allow_cost=allow_cost,
            )
        )
        tokenizer = _tokenizer(files)
        other, other_tokenizer = None, None
        if reference is not None:
            other_files = stack.enter_context(open_files(reference, dtype=chosen))
            other_tokenizer = _tokenizer(other_files)
            check_same_tokenizer(tokenizer, other_tokenizer, content)
            other = _model(other_files, where, chosen, loading)
        ours = _model(files, where, chosen, loading)
    return evaluate(
        ours,
        tokenizer,
        content,
        window=window,
        separator=separator,
        reference=other,
        reference_tokenizer=other_tokenizer,
        random_windows=random_windows,
        seed=seed,
        batch=batch,
        new_cache=None if cache is None else partial(new_cache, ours, cache),
        kv_step=kv_step,
        progress=progress,
    )


def _model(
    files: ModelFiles, device: torch.device, dtype: torch.dtype | None, progress: Progress | None
) -> PreTrainedModel:
    model: PreTrainedModel = build_model(files, dtype, progress).to(device)
    return model


def _tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer, for a model whose class predicts text."""
    found: PreTrainedTokenizerBase = text_tokenizer(
        files, use="evaluated", hint="; an archive must be compiled again"
    )
    return found


def _dtype(name: str | None, device: torch.device) -> torch.dtype | None:
    """The type to compute in; None for the stored one."""
    if name is None:
        return torch.float32 if device.type == "cpu" else None
    return resolve_dtype(name)
