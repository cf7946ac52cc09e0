"""The config that an archive carries, and what of it an archive does not hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reallm_compiler.checkpoint.folder import CONFIG
from reallm_compiler.checkpoint.quantization import without_storage
from reallm_compiler.errors import SourceError


def plain_config(
    files: tuple[tuple[str, bytes], ...], config: Mapping[str, Any]
) -> tuple[tuple[str, bytes], ...]:
    """The files, with a `config.json` that does not say how weights were stored."""
    return tuple(
        (name, config_bytes(without_storage(config)) if name == CONFIG else data)
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
