"""Tensors into safetensors files of bounded size, one after another, as transformers names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reallm_compiler.errors import OutputError

SHARD_BYTES = 2 * 2**30
"""Largest shard, unless one tensor is larger."""


class ShardWriter:
    """Writes `model.safetensors`, or several shards and their index.

    Args:
        folder: where.

    Attributes:
        total: bytes of tensors so far.
    """

    def __init__(self, folder: Path) -> None:
        self.total = 0
        self._folder = folder
        self._tensors: dict[str, Tensor] = {}
        self._filled = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it is written with its shard.

        Raises:
            OutputError: the disk refuses.
        """
        if self._tensors and self._filled + tensor.nbytes > SHARD_BYTES:
            self._write()
        self._tensors[name] = tensor.contiguous()
        self._filled += tensor.nbytes
        self.total += tensor.nbytes

    def finish(self) -> None:
        """Write the last shard, and the index where there are several.

        Raises:
            OutputError: the disk refuses.
        """
        self._write()
        count = len(self._shards)
        weight_map = {}
        for number, members in enumerate(self._shards):
            name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            name = name if count > 1 else "model.safetensors"
            self._partial(number).rename(self._folder / name)
            weight_map.update(dict.fromkeys(members, name))
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            path = self._folder / "model.safetensors.index.json"
            path.write_text(text, encoding="utf-8")

    def _write(self) -> None:
        save_tensors(self._tensors, self._partial(len(self._shards)))
        self._shards.append(list(self._tensors))
        self._tensors, self._filled = {}, 0

    def _partial(self, number: int) -> Path:
        """Where a shard lies until it is known how many there are."""
        return self._folder / f"shard-{number}.partial"


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OutputError: the disk refuses.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # it wraps the system's error
        raise OutputError(f"cannot write: {error}", location=str(path.name)) from error
