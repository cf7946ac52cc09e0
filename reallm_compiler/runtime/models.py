"""A model and its tokenizer from wherever they are: an archive, a checkpoint's folder, the Hub.

A checkpoint is read by reallm's own inventory and reader, tensor by tensor, so that what can be
compiled can be loaded: fp8 weights come with their scales multiplied in, as an archive has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import EvaluationError, SourceError
from reallm_compiler.models.build import ModelFiles, build_model
from reallm_compiler.models.source import source_files
from reallm_compiler.models.tokenizer import load_tokenizer
from reallm_compiler.progress import Progress
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runtime.dtypes import resolve_dtype
from reallm_compiler.runtime.kv_cache import generate_with
from reallm_compiler.runtime.kv_settings import KvSource, kv_settings
from reallm_compiler.runtime.mapped import Mode, check_mode, packed_files
from reallm_formats import Verify


def load(
    path: str | os.PathLike[str],
    *,
    mode: Mode = "dense",
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    verify: Verify = "now",
    kv_cache: KvSource | None = None,
    progress: Progress | None = None,
) -> tuple[Any, Any]:
    """A model, in evaluation mode, and its tokenizer.

    The class is the one that the config names: a causal language model, a classifier, an encoder, a
    vision-language model. With `mode="dense"` the weights of an archive are decoded once, now; the
    model then runs as any transformers model does. With `mode="packed"` they stay as they are
    stored, on mapped pages of the file, and each layer computes from its codes: the model takes
    the memory of the file. Codes are frozen; peft adapters can be trained over them.

    Args:
        path: an archive, the folder of a checkpoint, or a Hub id.
        mode: `dense`, or `packed` for an archive.
        device: where the model will run: `cpu`, `cuda`, `cuda:1`, ...; `auto` is cuda where there
            is one.
        dtype: type of its floating-point tensors, as torch's or by name: `float32`, `bfloat16`,
            `float16`; the checkpoint's own when None.
        adapter: an adapter whose factors and gains replace the archive's own. To
            switch between several without decoding again, see `open_tunable`.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.
        allow_cost: decode an archive whatever its plan costs to decode; see `open_archive`.
        verify: `later` lets an archive's digests be checked in the background while it is decoded;
            the model is given out when all are right. A packed model is given out at once, and
            damage that is found is raised by its next call.
        kv_cache: how `model.generate` keeps keys and values: a shipped recipe such as `kv-4bit`, a
            recipe file, an archive, or the `kv_cache` section of a recipe as plain data; `none` for
            as they are. None for what the recipe of this archive says, if it says something.
        progress: see `reallm_compiler.progress`; counts tensors that are read or decoded.

    Returns:
        The model and the tokenizer; None for the tokenizer if the checkpoint had none.

    Raises:
        EvaluationError: the device is not there, or the type is none to run in.
        SourceError: there is no such model, it holds matrices without a config, its tensors are not
            those of its class, its decoder is not there, or it needs code of its repository.
        FormatError: the archive, the adapter or the decoder is damaged.
        AdapterError: the adapter belongs to another base.
        RecipeError: the recipe of the cache is wrong, or says nothing of one.
    """
    device = choose_device(device, EvaluationError)
    chosen = resolve_dtype(dtype)
    with open_files(
        path,
        mode=mode,
        dtype=chosen,
        adapter=adapter,
        decoder=decoder,
        allow_cost=allow_cost,
        verify=verify,
    ) as files:
        cache = kv_settings(kv_cache, own=files.kv_cache)
        tokenizer = load_tokenizer(files.small, files.label)  # before the work
        model = build_model(files, chosen, progress)
    model = model.to(device).eval()
    if cache is not None and (kv_cache is not None or model.can_generate()):
        generate_with(model, cache)
    return model, tokenizer


@contextmanager
def open_files(
    path: str | os.PathLike[str],
    *,
    mode: Mode = "dense",
    dtype: torch.dtype | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    verify: Verify = "now",
) -> Iterator[ModelFiles]:
    """What a model is made of, with an archive held open as long as its tensors are read.

    Arguments and errors are those of `load`.
    """
    check_mode(mode)
    if Path(path).is_file() or os.fspath(path).endswith(".reallm"):
        _check_archive_name(path)
        packed = mode == "packed"
        archive = open_archive(
            path,
            adapter=adapter,
            decoder=decoder,
            allow_cost=allow_cost,
            verify=verify,
            private=packed,
        )
        with ExitStack() as stack:
            stack.enter_context(archive)
            yield (packed_files if packed else archive_files)(archive, dtype=dtype)
            if packed and verify == "later":
                stack.pop_all()  # closing would wait for the checks, which the model asks for
        return
    if mode == "packed":
        raise SourceError(
            "only archives run packed, and this is not one",
            location=os.fspath(path),
            hint="compile it first, or run it as it is",
        )
    for given, what in ((adapter, "an adapter"), (decoder, "a decoder")):
        if given is not None:
            raise SourceError(
                f"{what} is for archives, and this is not one", location=os.fspath(path)
            )
    yield source_files(open_source(path), os.fspath(path))


def _check_archive_name(path: str | os.PathLike[str]) -> None:
    """Point from a part of a model folder to the folder, before an archive's header is missed."""
    text = os.fspath(path)
    if text.endswith((".safetensors", ".json", ".bin")):
        raise SourceError(
            "this is one file of a model",
            location=text,
            hint=f"give the folder that holds it: {Path(text).parent}",
        )
