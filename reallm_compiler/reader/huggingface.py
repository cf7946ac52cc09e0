"""Archive -> a ready transformers model and its tokenizer."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import SourceError
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.reader.reconstruct import write_files


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """The model of an archive, in evaluation mode, and its tokenizer.

    The weights are decoded once, now; the model then runs as any transformers model does.

    Args:
        path: the archive.
        device: where the model will run.
        dtype: the checkpoint's own when None.

    Returns:
        The model and the tokenizer; None for the tokenizer if the checkpoint had none.

    Raises:
        SourceError: the archive holds matrices without a config.
        FormatError: the archive is damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with open_archive(path) as archive, tempfile.TemporaryDirectory() as folder:
        write_files(archive, Path(folder))
        if not (Path(folder) / "config.json").exists():
            raise SourceError(
                "this archive holds matrices without a config, so there is no model to build",
                location=str(path),
                hint="read single matrices with `reallm_compiler.open(path).matrix(name)`",
            )
        config = AutoConfig.from_pretrained(folder)
        state = dict(archive.state_dict(dtype=dtype))
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
    return model.to(device).eval(), tokenizer
