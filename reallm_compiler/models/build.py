"""From a config, tensors by name and small files to a running model: the one way there is.

Archives and checkpoints come here alike, so what can be evaluated as a folder can be evaluated as
an archive, with the same class and the same numbers. The class is the one that the config names in
`architectures`, and every tensor must match one of its parameters: what transformers would
fill with random numbers, or leave out, is an error here.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.checkpoint.architecture import building, model_class, transformers_config
from reallm_compiler.checkpoint.layers import is_prediction, prediction_layers
from reallm_compiler.checkpoint.paths import parse_json
from reallm_compiler.errors import SourceError
from reallm_compiler.progress import OnProgress, Progress, progress_callback

GENERATION = "generation_config.json"
OLD_CONSTANT = ".masked_bias"
"""What GPT-like classes of older versions stored beside their causal masks; no class reads it."""
SHOWN = 5
"""Names of tensors that an error lists."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is read when the model takes it, so that no two copies of a model are held.

    Attributes:
        dtype: of what `read` gives.
        read: reads or decodes it.
    """

    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """What a model is made of, wherever it lies.

    Attributes:
        label: what to call it in messages: the path.
        config: the content of its config.json.
        small: relative path to content of config, tokenizer and the like.
        tensors: by their names in the checkpoint; of tied tensors one is enough.
        experts: transformers' name of how stacks of experts are run; its own choice when None.
        finish: called with the model when it is built.
        kv_cache: the `kv_cache` section of an archive's recipe; None without.
    """

    label: str
    config: Mapping[str, Any]
    small: Mapping[str, bytes]
    tensors: Mapping[str, Stored]
    experts: str | None = None
    finish: Callable[[Any], None] | None = None
    kv_cache: Mapping[str, Any] | None = None


def build_model(
    files: ModelFiles,
    dtype: torch.dtype | None = None,
    progress: Progress | None = False,
) -> Any:  # noqa: ANN401
    """The model, on the CPU, in evaluation mode.

    Args:
        files: what it is made of.
        dtype: type of its floating-point tensors; None for what its config states, or else for
            that of the first tensor.
        progress: see `reallm_compiler.progress`; counts tensors that are read or decoded.

    Raises:
        SourceError: transformers has no such model, or its class and its tensors do not fit.
        ReallmError: whatever reading a tensor raises.
    """
    label = files.label
    config, made = class_of(files)
    reader = _Reader(len(files.tensors), progress_callback(progress, "load", "tensors"))
    chosen: torch.dtype | str | None = dtype
    if chosen is None:
        floats = (tensor.dtype for tensor in files.tensors.values())
        first = next((kind for kind in floats if kind.is_floating_point), None)
        chosen = "auto" if getattr(config, "dtype", None) is not None else first
    try:
        with _without_bars(), building(label):
            # The class itself, as the factories look for a folder. It renames, joins and ties.
            model, found = made.from_pretrained(
                None,
                config=config,
                state_dict={n: _Lazy(t, reader) for n, t in files.tensors.items()},
                generation_config=_generation(files, made),
                dtype=chosen if chosen is not None else torch.float32,
                ignore_mismatched_sizes=True,  # reported below, with names
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                **({} if files.experts is None else {"experts_implementation": files.experts}),
            )
    except SourceError:
        if reader.failed is not None:
            raise reader.failed from None
        raise
    if reader.failed is not None:
        raise reader.failed
    _check_complete(model, found, files)
    if files.finish is not None:
        files.finish(model)
    reader.finish()
    return model


def class_of(files: ModelFiles) -> tuple[Any, Any]:
    """The config object of a model, and its class of transformers.

    Raises:
        SourceError: transformers has no such model, or finds no sense in its config.
    """
    config = transformers_config(files.config, files.label)
    return config, model_class(config, files.config, files.label)


def _generation(files: ModelFiles, made: Any) -> Any:  # noqa: ANN401 (transformers has no types)
    """The generation config that a folder of these files has; None for what cannot generate."""
    if not made.can_generate():
        return None
    from transformers import GenerationConfig

    if GENERATION in files.small:
        content = parse_json(files.small[GENERATION], f"{files.label}: {GENERATION}")
        return GenerationConfig.from_dict(content)
    # Older checkpoints state such settings in the config itself.
    return GenerationConfig.from_model_config(copy.deepcopy(dict(files.config)))


def _check_complete(model: Any, found: Mapping[str, Any], files: ModelFiles) -> None:  # noqa: ANN401
    """Refuse a model with random tensors, or a checkpoint of which something is left out.

    Layers for multi-token prediction may be left out: they are no part of the model, and many
    classes have no module for them.

    Args:
        model: as it was built.
        found: what transformers says of missing, unexpected and mismatched names, without those
            that it ties, makes itself, or knows to be of no use to this class.
        files: what the model was made of.

    Raises:
        SourceError: with the names.
    """
    prediction = prediction_layers(files.tensors, files.config)
    missing = sorted(found["missing_keys"])
    computed = {name for name, _ in model.named_buffers()}
    prefix = f"{model.base_model_prefix}."
    unused = sorted(
        name
        for name in found["unexpected_keys"]
        if name not in computed
        and prefix + name not in computed
        and not name.endswith(OLD_CONSTANT)
        and not is_prediction(name, prediction)
    )
    other = sorted(
        f"{name} {_shape(stored)}, not {_shape(wanted)}"
        for name, stored, wanted in found["mismatched_keys"]
    )
    parts = [
        _listed(missing, "is missing", "are missing"),
        _listed(unused, "is not used", "are not used"),
        _listed(other, "has another shape", "have another shape"),
    ]
    found_parts = [part for part in parts if part]
    if found_parts:
        raise SourceError(
            f"the tensors are not those of {type(model).__name__}: {'; '.join(found_parts)}",
            location=files.label,
            note="what is missing would be random numbers, and what is not used would be lost",
            hint="`architectures` in config.json must name the class that the weights are of, and "
            "the names of the tensors must be that class's own",
        )


def _listed(names: Collection[str], one: str, many: str) -> str:
    shown = ", ".join(list(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} {one if len(names) == 1 else many} ({shown})" if names else ""


def _shape(extents: Collection[int]) -> str:
    return " x ".join(map(str, extents)) or "scalar"


class _Reader:
    """Reads one tensor at a time, and keeps the first error: the library would hide it.

    Args:
        total: number of tensors.
        report: is called with how many have been read.

    Attributes:
        failed: that error.
    """

    def __init__(self, total: int, report: OnProgress) -> None:
        self.failed: BaseException | None = None
        self._total = total
        self._read = 0
        self._report = report
        self._lock = threading.Lock()

    def read(self, tensor: Stored) -> Tensor:
        with self._lock:
            if self.failed is not None:  # the model will not be used: no more work for it
                return torch.empty(0)
            try:
                if self._read < self._total:  # the last one is reported by `finish`
                    self._report(self._read, self._total)
                self._read += 1
                return tensor.read()
            except BaseException as error:
                self.failed = error
                raise

    def finish(self) -> None:
        """Report that all is done: a class may have no use for some tensors."""
        self._report(self._total, self._total)


class _Lazy:
    """A tensor as transformers takes it from a file of safetensors: read when it is indexed."""

    def __init__(self, tensor: Stored, reader: _Reader) -> None:
        self._tensor = tensor
        self._reader = reader
        self.dtype = tensor.dtype

    def __getitem__(self, index: object) -> Tensor:
        return self._reader.read(self._tensor)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of the library: output is the command line's business."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
