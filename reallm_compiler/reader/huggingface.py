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
from reallm_compiler.reader.tokenizer import has_tokenizer, load_tokenizer
from reallm_compiler.sources.folder import CONFIG
from reallm_compiler.sources.folder import read_config as read_plain
from reallm_compiler.sources.untrusted import needs_code, offline, without_code


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
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
        allow_cost: decode it whatever its plan says that this costs; see `open_archive`.

    Returns:
        The model and the tokenizer; None for the tokenizer if the checkpoint had none.

    Raises:
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive, the adapter or the decoder is damaged.
        AdapterError: the adapter belongs to another base.
    """
    with open_archive(path, adapter=adapter, decoder=decoder, allow_cost=allow_cost) as archive:
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
    from transformers import AutoModelForCausalLM

    archive.find_decoders()  # before the work
    with tempfile.TemporaryDirectory() as folder:
        write_files(archive, Path(folder))
        if not (Path(folder) / "config.json").exists():
            raise SourceError(
                "this archive holds matrices without a config, so there is no model to build",
                location=str(archive.path),
                hint="read single matrices with `reallm_compiler.open(path).matrix(name)`",
            )
        config = read_config(Path(folder), str(archive.path))
        state = {
            name: archive.tensor(name, dtype=dtype, coded_only=name in coded_only)
            for name in archive.tensor_names
        }
        # Its annotations leave out what it takes.
        factory: Any = AutoModelForCausalLM
        with offline(), torch.device("meta"):
            architecture = type(factory.from_config(config, trust_remote_code=False))
        # The class itself, since the factory looks for a folder. It renames and ties as for one.
        with offline():
            model = architecture.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype if dtype is not None else "auto",
                trust_remote_code=False,
            )
        found = has_tokenizer(os.listdir(folder))
        tokenizer = load_tokenizer(Path(folder), str(archive.path)) if found else None
    return model, tokenizer


def read_config(folder: Path, label: str) -> Any:  # noqa: ANN401 (transformers has no types)
    """The config of a local folder as transformers has it, without what leads to code.

    Raises:
        SourceError: it is not sound, or transformers knows its model type only by code of the
            repository.
    """
    from transformers import CONFIG_MAPPING

    content = read_plain(folder / CONFIG, CONFIG, folder)
    known: Any = CONFIG_MAPPING
    if content.get("model_type") not in known:
        if "auto_map" in content:
            raise needs_code("the model", label)
        raise SourceError(
            f"the model cannot be loaded: its type {content.get('model_type')!r} is not known to "
            "transformers",
            location=label,
        )
    plain = without_code(content)
    try:
        with offline():
            return known[plain["model_type"]].from_dict(plain)
    except Exception as error:  # whatever an odd config makes the library raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            "the model cannot be loaded: its config is not sound", location=label, note=reason[0]
        ) from error
