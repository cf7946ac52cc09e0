"""Stored tensors by plain reads of byte ranges, digested while they are read.

No memory map: a shard that shrinks or vanishes while a compile runs is a clear error and not a
signal that kills the process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import RawIOBase

import torch
from torch import Tensor

from reallm_compiler.checkpoint.store import open_shard
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec

CHUNK = 64 * 2**20
"""Bytes read at once."""


class ShardReader:
    """Reads the shards of a checkpoint.

    Args:
        folder: the checkpoint's, on this machine or in a store.

    Attributes:
        digests: SHA-256 of the stored bytes of each part that was read, by
            `tensor` or `tensor#offset`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def take_digests(self) -> dict[str, str]:
        """The digests since the last call."""
        taken, self.digests = self.digests, {}
        return taken

    def stored(self, spec: TensorSpec, index: int | None = None) -> Tensor:
        """A tensor, or a part of a 3-D one, as it is stored.

        Raises:
            SourceError: the shard is missing or too short.
        """
        shape = spec.shape if index is None else spec.shape[1:]
        begin, end = spec.byte_range(index=index)
        dtype = TORCH_DTYPES[spec.stored_dtype]
        parts = list(self.chunks(spec, begin, end, max(1, end - begin)))
        if not parts:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(parts[0], dtype=dtype).reshape(shape)

    def chunks(self, spec: TensorSpec, begin: int, end: int, size: int) -> Iterator[bytearray]:
        """The bytes [begin, end) of a shard, `size` at a time; then their digest is known."""
        digest = hashlib.sha256()
        try:
            with open_shard(self.folder, spec.shard) as file:
                file.seek(begin)
                for first in range(begin, end, size):
                    data = bytearray(min(size, end - first))
                    count = _fill(file, data)
                    if count < len(data):
                        raise SourceError(
                            f"the shard ends {end - first - count:,} bytes before the end of "
                            f"{spec.name}",
                            location=os.path.join(self.folder, spec.shard),
                            note="it has changed since its header was read, or was not copied "
                            "whole",
                            hint="copy or download this file again and run the same command again",
                        )
                    digest.update(data)
                    yield data
        except OSError as error:
            raise SourceError(
                f"cannot read a shard: {error.strerror or error}",
                location=os.path.join(self.folder, spec.shard),
                hint="put the file back and run the same command again: finished matrices are kept",
            ) from error
        name = spec.name if begin == spec.begin else f"{spec.name}#{begin - spec.begin}"
        self.digests[name] = digest.hexdigest()


def _fill(file: RawIOBase, data: bytearray) -> int:
    """Read into `data` until it is full or the file ends; returns the bytes read."""
    view, filled = memoryview(data), 0
    while filled < len(data):
        count = file.readinto(view[filled : filled + CHUNK])
        if not count:
            break
        filled += count
    return filled
