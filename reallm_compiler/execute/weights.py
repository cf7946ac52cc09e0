"""Weights from the checkpoint's files: plain reads of byte ranges, one tensor at a time.

No memory map: a shard that shrinks or vanishes while a compile runs is a clear error and not a
signal that kills the process.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import SourceError
from reallm_compiler.sources import Inventory
from reallm_compiler.tensors import TensorSpec

CHUNK = 64 * 2**20
"""Bytes read at once."""


def check_duplicates(inventory: Inventory) -> None:
    """Tensors that the config ties, and the checkpoint stores twice, are equal.

    Only one of them goes into the archive, so a config that ties two different tensors would
    lose one without a word.

    Raises:
        SourceError: two tied tensors differ.
    """
    weights = Weights(inventory)
    for spec in inventory.duplicates:
        kept = weights.by_name[inventory.ties[spec.name]]
        same = (spec.shape, spec.stored_dtype) == (kept.shape, kept.stored_dtype)
        if not same or weights.digest_of(spec) != weights.digest_of(kept):
            raise SourceError(
                f"the config ties {spec.name} to {kept.name}, and the checkpoint stores two "
                "different tensors",
                location=str(inventory.path),
                note="an archive stores tied tensors once, so one of them would be lost",
                hint="set `tie_word_embeddings` to false in config.json if both are meant",
            )


class Weights:
    """Reads tensors of an inventory.

    Attributes:
        digests: SHA-256 of the stored bytes of each part that was read, by
            `tensor` or `tensor#index`.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.folder = Path(inventory.path)
        self.by_name = {spec.name: spec for spec in (*inventory.tensors, *inventory.duplicates)}
        self.digests: dict[str, str] = {}

    def matrix(self, tensor: str, index: int | None, *, transposed: bool) -> torch.Tensor:
        """A matrix [p, q] in the checkpoint's type.

        Args:
            tensor: its tensor's name.
            index: which part of a 3-D tensor.
            transposed: the checkpoint stores [q, p].

        Raises:
            SourceError: the shard is missing or too short.
        """
        spec = self.by_name[tensor]
        shape = spec.shape if index is None else spec.shape[1:]
        values = self._values(spec, index, shape)
        if spec.scale is not None:
            values = self._scaled(spec, index, values)
        return values.t() if transposed else values

    def tensor(self, tensor: str, dtype: str) -> torch.Tensor:
        """A whole tensor cast to the section type `dtype`."""
        spec = self.by_name[tensor]
        values = self._values(spec, None, spec.shape)
        if spec.scale is not None:
            values = self._scaled(spec, None, values)
        return values.to(TORCH_DTYPES[dtype])

    def digest_of(self, spec: TensorSpec) -> str:
        """SHA-256 of a tensor's stored bytes, in hex."""
        begin, end = spec.byte_range()
        self._read(spec, begin, end)
        return self.take_digests()[spec.name]

    def take_digests(self) -> dict[str, str]:
        """The digests since the last call."""
        taken, self.digests = self.digests, {}
        return taken

    def _values(self, spec: TensorSpec, index: int | None, shape: tuple[int, ...]) -> torch.Tensor:
        begin, end = spec.byte_range(index=index)
        data = self._read(spec, begin, end)
        dtype = TORCH_DTYPES[spec.stored_dtype]
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def _read(self, spec: TensorSpec, begin: int, end: int) -> bytearray:
        data = bytearray(end - begin)
        view = memoryview(data)
        digest = hashlib.sha256()
        place = 0
        try:
            with (self.folder / spec.shard).open("rb", buffering=0) as file:
                file.seek(begin)
                while place < len(data):
                    count = file.readinto(view[place : place + CHUNK])
                    if not count:
                        break
                    digest.update(view[place : place + count])
                    place += count
        except OSError as error:
            raise SourceError(
                f"cannot read a shard: {error.strerror}",
                location=str(self.folder / spec.shard),
                hint="put the file back and run the same command again: finished matrices are kept",
            ) from error
        if place < len(data):
            raise SourceError(
                f"the shard ends {len(data) - place:,} bytes before the end of {spec.name}",
                location=str(self.folder / spec.shard),
                note="it has changed since its header was read, or was not copied whole",
                hint="copy or download this file again and run the same command again",
            )
        name = spec.name if begin == spec.begin else f"{spec.name}#{begin - spec.begin}"
        self.digests[name] = digest.hexdigest()
        return data

    def _scaled(self, spec: TensorSpec, index: int | None, values: torch.Tensor) -> torch.Tensor:
        """Stored numbers times their scales, in the type that the tensor stands for."""
        scale = spec.scale
        assert scale is not None  # the caller has looked
        stored = scale.tensor
        per_part = index is not None and len(stored.shape) == len(spec.shape)
        shape = stored.shape[1:] if per_part else stored.shape
        factors = self._values(stored, index if per_part else None, shape).float()
        rows, columns = values.shape[-2:]
        if factors.dim() >= 2:
            factors = factors.repeat_interleave(scale.block[0], -2)[..., :rows, :]
            factors = factors.repeat_interleave(scale.block[1], -1)[..., :columns]
        return (values.float() * factors).to(TORCH_DTYPES[spec.dtype])
