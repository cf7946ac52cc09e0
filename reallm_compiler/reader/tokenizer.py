"""The tokenizer of a local folder, loaded without the Hub and without code of its repository."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.carried import TOKENIZERS
from reallm_compiler.sources.untrusted import needs_code, offline


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of these names make a tokenizer that transformers can load."""
    return any(fnmatchcase(name, word) for word in TOKENIZERS for name in names)


def load_tokenizer(folder: Path, label: str) -> Any:  # noqa: ANN401 (transformers has no types)
    """The tokenizer of a folder that has one.

    Args:
        folder: where its files lie.
        label: what to call it in messages.

    Raises:
        SourceError: its files are not sound, or it needs code of its repository.
    """
    from transformers import AutoTokenizer

    try:
        with offline():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # whatever odd files make the library raise
        if _names_code(folder) and "trust_remote_code" in str(error):
            raise needs_code("the tokenizer", label) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            "the tokenizer cannot be loaded",
            location=label,
            note=reason[0],
            hint="the folder needs tokenizer.json beside config.json",
        ) from error


def _names_code(folder: Path) -> bool:
    """Whether the tokenizer's own config, or the model's, names code of its repository."""
    for name in ("tokenizer_config.json", "config.json"):
        try:
            if "auto_map" in json.loads((folder / name).read_bytes()):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False
