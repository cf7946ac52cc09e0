"""Checkpoints of the Hugging Face Hub, through its own client and its local cache.

Only the files that `reallm` reads are asked for: safetensors, the index, and the small files that
an archive carries. Pickles and program code are never downloaded.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint.carried import FOLDERS, NAMES
from reallm_compiler.checkpoint.folder import (
    CONFIG,
    INDEX,
    MAIN,
    holds_weights,
    read_config,
    weight_files,
)
from reallm_compiler.checkpoint.shards import read_weight_map
from reallm_compiler.errors import SourceError

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_ID = re.compile(rf"(?P<id>{_PART}(?:/{_PART})?)(?:@(?P<revision>[A-Za-z0-9_./-]{{1,200}}))?")
SMALL = (INDEX, *NAMES, *FOLDERS)
PATTERNS = ("model.safetensors", "model-*.safetensors", *SMALL)

Headers = Mapping[str, dict[str, Any]]
"""For each shard its header: tensor -> dtype, shape, data_offsets."""


def is_hub_id(text: str) -> bool:
    """Whether a text could name a repository: `NAME`, `ORG/NAME`, either with `@REVISION`."""
    found = _ID.fullmatch(text)
    return bool(found) and ".." not in text and not text.endswith((".json", ".yaml", ".yml"))


def fetch(text: str, *, hint: str | None = None) -> Path:
    """The local folder of a repository's snapshot, downloaded where it is not in the cache.

    Args:
        text: a text that `is_hub_id` accepts.
        hint: the hint if there is no such repository.

    Raises:
        SourceError: the repository cannot be had: unknown, private, or no connection.
    """
    with _client(text, hint) as (hub, name, revision):
        folder = _snapshot(hub, name, revision, PATTERNS)
        named = _named_weights(hub, name, revision, folder)
        return _snapshot(hub, name, revision, named) if named else folder


def describe(text: str, *, hint: str | None = None) -> tuple[Path, Headers | None]:
    """A repository without its weights: the folder of its small files, and the weights' headers.

    The folder holds the weights all the same where the cache has them. Of those that it lacks
    only the headers are read, from the same commit.

    Args:
        text: a text that `is_hub_id` accepts.
        hint: the hint if there is no such repository.

    Returns:
        The folder; and for each shard its header, as safetensors has it, or None where the folder
        has it all: it holds the weights, or there are no safetensors.

    Raises:
        SourceError: the repository cannot be had: unknown, private, or no connection.
    """
    with _client(text, hint) as (hub, name, revision):
        folder = _snapshot(hub, name, revision, SMALL)
        named = _named_weights(hub, name, revision, folder)
        if holds_weights(folder):
            return folder, None
        errors: Any = importlib.import_module("huggingface_hub.errors")
        try:
            if named:
                read = partial(hub.parse_safetensors_file_metadata, name, revision=folder.name)
                files = {shard: read(shard) for shard in named}
            else:
                found = hub.get_safetensors_metadata(name, revision=folder.name)
                files = found.files_metadata
        except errors.NotASafetensorsRepoError:
            return folder, None
        except (*network_errors(), errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            if (folder / INDEX).exists():
                raise
            return folder, None  # a config in the cache, and no network
        except errors.SafetensorsParsingError as error:
            raise SourceError("a shard is not a valid safetensors file", location=text) from error
    return folder, {
        shard: {
            tensor: {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": list(info.data_offsets),
            }
            for tensor, info in file.tensors.items()
        }
        for shard, file in files.items()
    }


def _named_weights(hub: Any, name: str, revision: str | None, folder: Path) -> tuple[str, ...]:  # noqa: ANN401
    """The files of the weights, where the config names others than the usual ones."""
    if not (folder / CONFIG).exists():
        return ()
    main, index = weight_files(read_config(folder / CONFIG, CONFIG, folder))
    if (main, index) == (MAIN, INDEX):
        return ()
    if main:
        return (main,)
    _snapshot(hub, name, revision, (index,))
    return tuple(sorted(set(read_weight_map(folder, index).values())))


def _snapshot(hub: Any, name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:  # noqa: ANN401
    return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def network_errors() -> tuple[type[Exception], ...]:
    """What the client lets through of its library for HTTP; which one depends on its version."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


@contextmanager
def _client(text: str, hint: str | None) -> Iterator[tuple[Any, str, str | None]]:
    """The Hub's client, the repository and its revision; the client's errors become ours."""
    found = _ID.fullmatch(text)
    if found is None:
        raise SourceError(f"{text!r} is not a repository on the Hub", hint=hint)
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise SourceError(
            f"there is no folder {text!r}, and a model of the Hub needs huggingface_hub",
            location=text,
            hint=hint or "pip install huggingface_hub",
        ) from error
    try:
        yield hub, found["id"], found["revision"]
    except errors.GatedRepoError as error:
        raise SourceError(
            "the model is gated: its owner asks you to agree to its terms first",
            location=text,
            hint="agree on its page, then run `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the model has no revision {found['revision']!r}", location=text
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            "neither a local folder nor a model on the Hub",
            location=text,
            hint=hint or "check the spelling; for a private model run `hf auth login`",
        ) from error
    except (
        *network_errors(),
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
    ) as error:
        raise SourceError(
            "no such folder, the model is not in the local cache, and the Hub cannot be reached",
            location=text,
            hint=hint or "connect to the network, or give the path of a folder",
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"the Hub could not provide the model: {first[0].rstrip('.')}",
            location=text,
            hint=hint or "try again, or give the path of a folder",
        ) from error
