"""Checkpoints of the Hugging Face Hub, through its own client and its local cache.

Only the files that `reallm` reads are asked for: safetensors, the index, and the small files that
an archive carries. Pickles and program code are never downloaded.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.embed import NAMES, TEMPLATES
from reallm_compiler.sources.folder import INDEX

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_ID = re.compile(rf"(?P<id>{_PART}(?:/{_PART})?)(?:@(?P<revision>[A-Za-z0-9_./-]{{1,200}}))?")
PATTERNS = ("model.safetensors", "model-*.safetensors", INDEX, *NAMES, f"{TEMPLATES}/*.jinja")


def is_hub_id(text: str) -> bool:
    """Whether a text could name a repository: `NAME`, `ORG/NAME`, either with `@REVISION`."""
    found = _ID.fullmatch(text)
    return bool(found) and ".." not in text and not text.endswith((".json", ".yaml", ".yml"))


def fetch(text: str, *, hint: str | None = None) -> Path:
    """The local folder of a repository's snapshot, downloaded where it is not in the cache.

    Args:
        text: a text that `is_hub_id` accepts.
        hint: what to say if there is no such repository.

    Raises:
        SourceError: the repository cannot be had: unknown, private, or no connection.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise SourceError(f"{text!r} names no repository of the Hub", hint=hint)
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
        folder = hub.snapshot_download(
            found["id"], revision=found["revision"], allow_patterns=list(PATTERNS)
        )
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
            "neither a local folder nor a model of the Hub",
            location=text,
            hint=hint or "check the spelling; for a private model run `hf auth login`",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise SourceError(
            "no such folder, the model is not in the local cache, and the Hub is out of reach",
            location=text,
            hint=hint or "connect to the network, or give the path of a folder",
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"the Hub did not deliver the model: {first[0].rstrip('.')}",
            location=text,
            hint=hint or "try again, or give the path of a folder",
        ) from error
    return Path(folder)
