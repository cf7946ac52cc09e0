"""Results that are kept between runs: tensors in a folder, by a digest of all that decides them.

An entry holds a digest of its own content, so one that is torn, damaged or put under another key is
as if it were not there. Entries are safetensors: nothing in them is run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from reallm_compiler.codecs.sections import tensor_bytes
from reallm_compiler.errors import CompileError
from reallm_compiler.runs.state import load_state, save_state

DIGEST = "sha256"
"""The fact of an entry that holds the digest of its content."""

Entry = tuple[dict[str, str], dict[str, Tensor]]
"""Facts and tensors of an entry, by name."""


class Cache:
    """A folder of entries. Processes may share it: each entry is written in one step.

    Args:
        folder: where they lie; it is made.
        most_bytes: of all entries; the oldest are removed beyond it. None for no bound.

    Raises:
        CompileError: the folder cannot be made.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._folder = folder
        self._most = most_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompileError(
                f"the cache cannot be made: {error.strerror}",
                location=str(folder),
                hint="name another folder with `--cache`",
            ) from error
        self._bytes = 0 if most_bytes is None else sum(size for _, size, _ in self._entries())

    def get(self, key: str) -> Entry | None:
        """What is kept under a key of hex digits; None if there is nothing whole."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            facts, tensors = load_state(path)
        except ValueError:
            return None
        if facts.pop(DIGEST, None) != _digest(key, facts, tensors):
            return None
        return facts, tensors

    def put(self, key: str, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, which are on the CPU and contiguous, and facts under a key of hex digits.

        Raises:
            CompileError: the disk refuses.
        """
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            save_state(path, tensors, {**facts, DIGEST: _digest(key, facts, tensors)})
            self._bytes += path.stat().st_size
            if self._most is not None and self._bytes > self._most:
                self._shrink(self._most)
        except OSError as error:
            raise CompileError(
                f"the cache cannot be written: {error}",
                location=str(self._folder),
                hint="free disk space, or name another folder with `--cache`",
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of writing, bytes and path of each entry; one that goes meanwhile is left out."""
        found = []
        for path in self._folder.glob("??/*.safetensors"):
            try:
                facts = os.stat(path)
            except OSError:
                continue
            found.append((facts.st_mtime_ns, facts.st_size, path))
        return found

    def _shrink(self, most: int) -> None:
        """Remove the oldest entries until a tenth of the bound is free."""
        entries = sorted(self._entries())
        self._bytes = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._bytes <= most - most // 10:
                return
            path.unlink(missing_ok=True)
            self._bytes -= size


def _digest(key: str, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a key, facts and tensors, each with its length, in hex."""
    digest = hashlib.sha256(key.encode())
    for name, text in sorted(facts.items()):
        digest.update(f"{len(name)} {name} {len(text)} {text} ".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{len(name)} {name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
