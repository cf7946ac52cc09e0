"""The tokenizer among a model's small files, loaded without the Hub and without code of theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint.carried import TOKENIZERS
from reallm_compiler.checkpoint.untrusted import offline
from reallm_compiler.errors import SourceError
from reallm_compiler.models.small_files import write_files


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of these names make a tokenizer."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in TOKENIZERS)


def load_tokenizer(files: Mapping[str, bytes], label: str) -> Any:  # noqa: ANN401 (no types)
    """The tokenizer of a model's small files; None if they hold none.

    Args:
        files: relative path to content, the config among them.
        label: what to call the model in messages.

    Raises:
        SourceError: its files are not sound, or it needs code of its repository.
        FormatError: one is no file that a model has beside its weights.
    """
    if not has_tokenizer(files):
        return None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_files(files.items(), Path(folder))
        try:
            with offline():
                loaded = AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # whatever odd files make the library raise
            if "trust_remote_code" in str(error):
                raise SourceError(
                    "the tokenizer needs program code of its repository (auto_map)",
                    location=label,
                    note="program code from a repository is never run",
                ) from error
            reason = str(error).replace(folder, label).strip().splitlines()
            raise SourceError(
                "the tokenizer cannot be loaded",
                location=label,
                note=reason[0] if reason else type(error).__name__,
                hint="a tokenizer.json beside config.json is what loads everywhere",
            ) from error
    loaded.name_or_path = label  # the folder that it was read from is gone
    return loaded
