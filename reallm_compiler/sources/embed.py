"""The small files that an archive carries, so that it alone rebuilds the model.

Only names on the list below are taken: the config, the generation config and what a tokenizer or
a processor is made of. Program code is never carried, even where the config asks for it: a model
that needs its own code is loaded with the code of its repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.sources.folder import CONFIG
from reallm_compiler.sources.paths import list_files, read_small, resolve_inside
from reallm_compiler.sources.scales import without_quantization
from reallm_formats.names import file_section, parse_name

NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
TOKENIZERS = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Those that make a tokenizer: any one of them is enough to try."""
TEMPLATES = "additional_chat_templates"
FILE_LIMIT = 128 * 2**20
"""Longest single file; the largest tokenizers of today take about 40 MiB."""


def embedded_files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """The files of a folder to carry, as (relative path, content), sorted by path.

    Raises:
        SourceError: one of them leads out of the folder, cannot be read, is too long, or has a
            name that an archive does not hold.
    """
    present = list_files(folder)
    names = [name for name in NAMES if name in present]
    if TEMPLATES in present:
        inner = list_files(resolve_inside(folder, TEMPLATES))
        names += [f"{TEMPLATES}/{name}" for name in inner if name.endswith(".jinja")]
    return tuple((name, _content(folder, name)) for name in sorted(names))


def _content(folder: Path, name: str) -> bytes:
    try:
        parse_name(file_section(name))
    except (FormatError, UnicodeEncodeError) as error:
        raise SourceError(
            "this name cannot be carried in an archive",
            location=str(folder / name),
            note=error.message if isinstance(error, FormatError) else "it is not UTF-8",
            hint="rename it, or take it out of the folder",
        ) from error
    try:
        return read_small(resolve_inside(folder, name), name, FILE_LIMIT)
    except SourceError as error:
        if error.location != name:
            raise
        raise SourceError(
            error.message, location=str(folder / name), note=error.note, hint=error.hint
        ) from error


def plain_config(
    files: tuple[tuple[str, bytes], ...], config: Mapping[str, Any]
) -> tuple[tuple[str, bytes], ...]:
    """The files, with a `config.json` that no longer speaks of quantisation."""
    return tuple(
        (name, config_bytes(without_quantization(config)) if name == CONFIG else data)
        for name, data in files
    )


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """A config as the bytes of a `config.json`; the same mapping gives the same bytes."""
    try:
        text = json.dumps(config, indent=2, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise SourceError(f"the config cannot be written as JSON: {error}") from error
    return (text + "\n").encode("utf-8")


def code_note(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A remark for a config that asks for program code of its own."""
    if config is None or "auto_map" not in config:
        return ()
    return (
        "config.json names program code of its own (auto_map): it is neither run nor carried, "
        "and loading the model again needs the code from its repository",
    )
