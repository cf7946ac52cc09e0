"""Archive -> a ready transformers model and its tokenizer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import SourceError
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.reader.reconstruct import write_files


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
) -> tuple[Any, Any]:
    """The model of an archive, in evaluation mode, and its tokenizer.

    The weights are decoded once, now; the model then runs as any transformers model does.

    Args:
        path: the archive.
        device: where the model will run.
        dtype: the checkpoint's own when None.
        adapter: an adapter whose factors and magnitudes stand in place of the archive's own. To
            switch between several without decoding again, see `open_tunable`.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.

    Returns:
        The model and the tokenizer; None for the tokenizer if the checkpoint had none.

    Raises:
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive, the adapter or the decoder is damaged.
        AdapterError: the adapter belongs to another base.
    """
    with open_archive(path, adapter=adapter, decoder=decoder) as archive:
        model, tokenizer = build(archive, dtype=dtype)
    return model.to(device).eval(), tokenizer


def build(
    archive: ModelArchive,
    *,
    dtype: torch.dtype | None = None,
    coded_only: Collection[str] = (),
) -> tuple[Any, Any]:
    """The model of an open archive, on the CPU, and its tokenizer or None.

    Args:
        archive: the archive.
        dtype: the checkpoint's own when None.
        coded_only: tensors of which the coded part alone is put in, for those who add the rest.

    Raises:
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive or its decoder is damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    archive.find_decoders()  # before the work
    with tempfile.TemporaryDirectory() as folder:
        write_files(archive, Path(folder))
        if not (Path(folder) / "config.json").exists():
            raise SourceError(
                "this archive holds matrices without a config, so there is no model to build",
                location=str(archive.path),
                hint="read single matrices with `reallm_compiler.open(path).matrix(name)`",
            )
        config = AutoConfig.from_pretrained(folder)
        state = {
            name: archive.tensor(name, dtype=dtype, coded_only=name in coded_only)
            for name in archive.tensor_names
        }
        with torch.device("meta"):
            architecture = type(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
        # The class itself, since the factory looks for a folder. It renames and ties as for one.
        model = architecture.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype if dtype is not None else "auto"
        )
        has_tokenizer = any(
            (Path(folder) / name).exists()
            for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
        )
        tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    return model, tokenizer
