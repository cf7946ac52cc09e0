"""Models to evaluate, from a Hugging Face folder, a `.reallm` archive or a hub id.

On the CPU everything is computed in float32 unless another type is asked for: the stored values
are kept exactly (bfloat16 and float16 are part of float32), so a difference between two models
comes from their weights and not from rounding on the way. On another device the stored type is
kept, as large models do not fit otherwise.

Weights come from safetensors only; a pickle is never opened. Missing weights are an error: the
library would fill them with random numbers and go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from reallm_compiler.errors import EvaluationError, SourceError
from reallm_compiler.evaluate.perplexity import Evaluation, evaluate
from reallm_compiler.evaluate.text import check_same_tokenizer, read_text
from reallm_compiler.sources import hub
from reallm_compiler.sources.untrusted import offline

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What loading raises for a folder that is not a sound model, by experience with transformers 5.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_for_evaluation(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, ready to be evaluated.

    Args:
        path: a Hugging Face folder, a `.reallm` archive, or a hub id such as `owner/name`.
        device: `cpu`, `cuda`, `cuda:1`, ... or `auto`: cuda where there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `source` for the stored type; without it
            float32 on the CPU and the stored type elsewhere.
        adapter: an adapter of the archive at `path`.
        decoder: where the trained decoders are that this archive uses but does not hold: a file,
            or a folder; beside the archive when None.

    Raises:
        SourceError: there is no such model, or the folder is not a sound one.
        FormatError: the archive is damaged.
        EvaluationError: the device is not there, or the type is unknown.
    """
    place = str(path)
    device = resolve_device(device)
    torch_dtype = _dtype(dtype, device)
    if Path(path).is_file():
        _check_archive_name(place)
        from reallm_compiler.reader.huggingface import load

        with _quiet_loading():
            model, tokenizer = load(
                path, device=device, dtype=torch_dtype, adapter=adapter, decoder=decoder
            )
        if tokenizer is None:
            raise SourceError(
                "the archive holds no tokenizer, so no text can be evaluated",
                location=place,
                hint="compile it from a folder that has tokenizer.json",
            )
        return model, tokenizer
    if adapter is not None:
        raise SourceError("an adapter belongs to an archive, and this is none", location=place)
    if decoder is not None:
        raise SourceError("a decoder belongs to an archive, and this is none", location=place)
    tokenizer = load_tokenizer(path)
    from transformers import AutoModelForCausalLM

    from reallm_compiler.reader.huggingface import read_config

    folder = _folder_of(place)
    config = read_config(folder, place)
    # Its annotations leave out the pair that `output_loading_info` gives.
    loader: Any = AutoModelForCausalLM
    with _told_as_source_error("the model", place), _quiet_loading(), offline():
        model, info = loader.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch_dtype if torch_dtype is not None else "auto",
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise SourceError(
            f"the model lacks {len(missing)} of its tensors, such as {missing[0]}",
            location=place,
            note="they would be random numbers, and the perplexity of no meaning",
        )
    model.to(device)
    model.eval()
    return model, tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub id.

    Raises:
        SourceError: there is no such model, or it has no tokenizer.
    """
    place = str(path)
    from reallm_compiler.reader import tokenizer

    loaded: PreTrainedTokenizerBase = tokenizer.load_tokenizer(_folder_of(place), place)
    return loaded


def evaluate_files(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    window: int | None = None,
    separator: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    random_windows: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure the model at `model` on the text file `text`: the whole of `reallm eval`.

    What is cheap is checked first: the text, then the tokenizers, then the weights are read. The
    arguments are those of `load_for_evaluation` and `evaluate`, and so are the errors.
    """
    content = read_text(text)
    device = resolve_device(device)
    if reference is not None and not Path(model).is_file() and not Path(reference).is_file():
        check_same_tokenizer(load_tokenizer(model), load_tokenizer(reference), content)
    ours, tokenizer = load_for_evaluation(
        model, device=device, dtype=dtype, adapter=adapter, decoder=decoder
    )
    other, other_tokenizer = (
        (None, None)
        if reference is None
        else load_for_evaluation(reference, device=device, dtype=dtype)
    )
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
        progress=progress,
    )


def resolve_device(device: str) -> str:
    """The device meant by `device`; `auto` is cuda where there is one, else the CPU.

    Raises:
        EvaluationError: there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise EvaluationError(
            f"there is no device {device!r}", hint="devices are auto, cpu and cuda"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise EvaluationError("there is no cuda device here", hint="use the device cpu or auto")
    return device


def _dtype(name: str | None, device: str) -> torch.dtype | None:
    """The type to compute in; None for the stored one."""
    if name is None:
        return torch.float32 if torch.device(device).type == "cpu" else None
    if name == "source":
        return None
    if name not in _DTYPES:
        raise EvaluationError(
            f"there is no type {name!r} to evaluate in",
            hint=f"types are {', '.join(_DTYPES)} and source",
        )
    return _DTYPES[name]


def _folder_of(place: str) -> Path:
    """The local folder of a model: the path itself, or the snapshot of a hub id.

    Raises:
        SourceError: the path leads nowhere, or the Hub has no such model.
    """
    path = Path(place)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(
                "the folder has no config.json",
                location=place,
                hint="give the folder of a Hugging Face model, or a .reallm archive",
            )
        return path
    may_be_hub_id = place.count("/") == 1 and not place.startswith((".", "/", "~"))
    if not may_be_hub_id or path.parent.is_dir() or not hub.is_hub_id(place):
        raise SourceError(
            "there is no such model",
            location=place,
            hint="give the folder of a Hugging Face model, or a .reallm archive",
        )
    return hub.fetch(place)


def _check_archive_name(place: str) -> None:
    """Point from a part of a model folder to the folder, before an archive's header is missed."""
    if place.endswith((".safetensors", ".json", ".bin")):
        raise SourceError(
            "this is one file of a model",
            location=place,
            hint=f"give the folder that holds it: {Path(place).parent}",
        )


@contextmanager
def _told_as_source_error(what: str, place: str) -> Iterator[None]:
    """Turn what the library raises for an unsound model into one line of ours."""
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"{what} cannot be loaded", location=place, note=reason[0]) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bars while weights are read: output is the command line's business."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
