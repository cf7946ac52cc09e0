"""Tensors that an interrupted run goes on from, in a safetensors file that is replaced in one step.

There is always a whole file or none: it is written as NAME.new, forced onto the disk, and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reallm_formats.system import sync_path

NEW = ".new"
"""Ending of a file that is not whole yet."""


def new_path(path: Path) -> Path:
    """Where a state is written before it replaces `path`."""
    return path.with_name(path.name + NEW)


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a state file.

    Args:
        path: the file.
        tensors: by name, contiguous, on the CPU.
        metadata: text by name.

    Raises:
        OSError: the disk refuses; what `path` held before stands.
    """
    fresh = new_path(path)
    try:
        save_file(dict(tensors), fresh, metadata=dict(metadata))
        sync_path(fresh)
        os.replace(fresh, path)
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def load_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a state file.

    Raises:
        ValueError: it is damaged, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def remove_state(path: Path) -> None:
    """Remove a state file and what a kill left of its next one."""
    path.unlink(missing_ok=True)
    new_path(path).unlink(missing_ok=True)
