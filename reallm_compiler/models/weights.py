"""Weights of a checkpoint, or of a prepared model, one matrix at a time.

A tensor that is kept, such as an embedding, may be larger than any matrix that is coded: it is read
and cast by pieces, and never held whole.

A prepared model's tensor is made here of what the checkpoint stores (`codecs.preparation`), so that
whoever reads weights reads those of the model that is coded; digests are of stored bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs.numerics.numbers import Loss
from reallm_compiler.codecs.preparation import Preparation
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import CodecError, SourceError
from reallm_compiler.models.shard_reader import CHUNK, ShardReader
from reallm_compiler.tensors import Origin, TensorSpec

_WIDER = "keep this tensor as `source`, or as a type of a wider range"

PIECE = 1 << 20
"""Numbers of a piece of a tensor, about."""


def check_duplicates(inventory: Inventory) -> None:
    """Tensors that the config ties, and the checkpoint stores twice, are equal.

    Only one of them goes into the archive, so a config that ties two different tensors would
    lose one without a word.

    Raises:
        SourceError: two tied tensors differ.
    """
    inventory = inventory.original or inventory
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


class Weights(ShardReader):
    """Reads tensors of an inventory.

    Args:
        inventory: of the checkpoint, or of a prepared model.
        factors: float64 [n], the factors of columns and rows that an `Origin` names.

    Attributes:
        by_name: the tensors of the inventory.
    """

    def __init__(
        self, inventory: Inventory, factors: Callable[[str], Tensor] | None = None
    ) -> None:
        super().__init__(inventory.path)
        self._named_factors = factors
        self.by_name = {spec.name: spec for spec in (*inventory.tensors, *inventory.duplicates)}

    def matrix(self, tensor: str, index: int | None, *, transposed: bool) -> Tensor:
        """A matrix [p, q] in the checkpoint's type.

        Args:
            tensor: its tensor's name.
            index: which part of a 3-D tensor.
            transposed: the checkpoint stores [q, p].

        Raises:
            SourceError: the shard is missing or too short.
        """
        spec = self.by_name[tensor]
        values = self.stored(spec, index)
        if spec.scale is not None:
            values = _scaled(spec, values, self._scales(spec, index), 0)
        if spec.origin is not None:
            values = self.preparation(spec.origin).apply(values)
        return values.t() if transposed else values

    def preparation(self, origin: Origin) -> Preparation:
        """What makes a tensor of a prepared model of the stored one.

        Raises:
            SourceError: the shard of its norm is missing or too short.
        """
        gain = origin.gain
        return Preparation(
            origin,
            None if gain is None else self.stored(gain),
            self._factors_of(origin.column_factors),
            self._factors_of(origin.row_factors),
        )

    def factors(self, tensor: str) -> dict[str, Tensor]:
        """The factors that are folded into a tensor, by name."""
        origin = self.by_name[tensor].origin
        named = () if origin is None else (origin.column_factors, origin.row_factors)
        found = {name: self._factors_of(name) for name in named if name is not None}
        return {name: factors for name, factors in found.items() if factors is not None}

    def _factors_of(self, name: str | None) -> Tensor | None:
        if name is None:
            return None
        assert self._named_factors is not None  # who folds them gives them
        return self._named_factors(name)

    def tensor(self, tensor: str, dtype: str) -> Tensor:
        """A whole tensor cast to the section type `dtype`; raises what `pieces` does."""
        spec = self.by_name[tensor]
        whole = torch.empty(spec.count, dtype=TORCH_DTYPES[dtype])
        first = 0
        for piece in self.pieces(tensor, dtype):
            whole[first : first + len(piece)] = piece
            first += len(piece)
        return whole.reshape(spec.shape)

    def pieces(self, tensor: str, dtype: str) -> Iterator[Tensor]:
        """A whole tensor cast to the section type `dtype`, flat, about `PIECE` numbers at a time.

        What has that type already is a copy, bit for bit; else a NaN stays a NaN and an infinity
        an infinity: nothing here has an error to minimise, so nothing need be finite.

        Raises:
            SourceError: the shard is missing or too short.
            CodecError: `dtype` is too narrow for the finite numbers (`codecs.numerics.numbers`).
        """
        spec = self.by_name[tensor]
        # Scales and origins belong to rows of a matrix, so that pieces hold whole rows.
        whole = spec.scale is not None or (spec.origin is not None and len(spec.shape) == 2)
        columns = max(1, spec.shape[-1]) if whole else 1
        step = max(1, PIECE // columns) * columns
        loss = Loss(TORCH_DTYPES[dtype])
        for first, values in self._steps(spec, step):
            cast = values.to(TORCH_DTYPES[dtype])
            if cast.dtype != values.dtype:
                _check_overflow(spec, dtype, values, cast, first)
                loss.add(values, cast)
            yield cast
        try:
            loss.check("values", _WIDER)
        except CodecError as error:
            error.location = spec.name
            raise

    def bands(self, tensor: str, rows: int) -> Iterator[Tensor]:
        """A 2-D tensor [p, q] in the checkpoint's type, `rows` rows at a time, the last of fewer.

        Raises:
            SourceError: the shard is missing or too short.
        """
        spec = self.by_name[tensor]
        columns = spec.shape[-1]
        for _, values in self._steps(spec, rows * columns):
            yield values.view(-1, columns)

    def _steps(self, spec: TensorSpec, step: int) -> Iterator[tuple[int, Tensor]]:
        """A tensor, flat, `step` numbers at a time, each with the index of its first."""
        if spec.origin is None:
            yield from self._stored_steps(spec, step)
            return
        made, shape = self.preparation(spec.origin), (-1, *spec.shape[1:])
        if made.by_rows:
            for first, values in self._stored_steps(spec, step):
                yield first, made.apply(values.view(shape)).view(-1)
            return
        ((_, stored),) = self._stored_steps(spec, spec.count)  # each row is made of many
        pieces = torch.split(made.apply(stored.view(shape)).view(-1), step)
        yield from zip(range(0, spec.count, step), pieces, strict=True)

    def _stored_steps(self, spec: TensorSpec, step: int) -> Iterator[tuple[int, Tensor]]:
        """What is stored of a tensor, flat, scaled, as of `_steps`."""
        factors = None if spec.scale is None else self._scales(spec, None)
        stored = TORCH_DTYPES[spec.stored_dtype]
        first = 0
        begin, end = spec.byte_range()
        for data in self.chunks(spec, begin, end, step * stored.itemsize):
            values = torch.frombuffer(data, dtype=stored)
            if factors is not None:
                columns = spec.shape[-1]
                rows = values.view(-1, columns)
                values = _scaled(spec, rows, factors, first // columns).view(-1)
            yield first, values
            first += len(values)

    def digest_of(self, spec: TensorSpec) -> str:
        """SHA-256 of a tensor's stored bytes, in hex."""
        self.read(spec.name)
        return self.take_digests()[spec.name]

    def read(self, tensor: str, index: int | None = None) -> None:
        """Only read a tensor, or a part of it, with its scales and its norm, for the digests.

        Raises:
            SourceError: the shard is missing or too short.
        """
        spec = self.by_name[tensor]
        parts = [(spec, index)]
        if spec.scale is not None:
            parts.append((spec.scale.tensor, _scale_index(spec, index)))
        if spec.origin is not None and spec.origin.gain is not None:
            parts.append((spec.origin.gain, None))
        for stored, part in parts:
            for _ in self.chunks(stored, *stored.byte_range(index=part), CHUNK):
                pass

    def _scales(self, spec: TensorSpec, index: int | None) -> Tensor:
        """float32 [r, c], or [e, r, c] of a whole 3-D tensor: a tensor's scales."""
        assert spec.scale is not None  # the caller has looked
        return self.stored(spec.scale.tensor, _scale_index(spec, index)).float()


def _scale_index(spec: TensorSpec, index: int | None) -> int | None:
    """Which part of a tensor's scales belongs to a part of it; None for all of them."""
    assert spec.scale is not None  # the caller has looked
    return index if len(spec.scale.tensor.shape) == len(spec.shape) else None


def _scaled(spec: TensorSpec, values: Tensor, factors: Tensor, first: int) -> Tensor:
    """Stored numbers times their scales, in the type that the tensor stands for.

    Args:
        spec: the tensor, of two dimensions or three.
        values: [n, q], its rows from `first` on; those of a 3-D tensor are counted through.
        factors: [r, c], or [e, r, c] for scales of each part.
        first: the first row.
    """
    assert spec.scale is not None  # the caller has looked
    high, wide = spec.scale.block
    rows = torch.arange(first, first + len(values))
    index = rows % spec.shape[-2] // high  # [n], rows of the scales
    if factors.dim() == 3:
        index += rows // spec.shape[-2] * factors.shape[1]
    spread = factors.reshape(-1, factors.shape[-1])[index].repeat_interleave(wide, 1)
    return (values.float() * spread[:, : values.shape[1]]).to(TORCH_DTYPES[spec.dtype])


def _check_overflow(spec: TensorSpec, dtype: str, values: Tensor, cast: Tensor, first: int) -> None:
    """Refuse a finite number of `values` [n] that `cast` holds as an infinity.

    Raises:
        CodecError: with its index; `first` is that of the first of `values` in the tensor.
    """
    if not torch.isinf(cast).any():
        return
    lost = (torch.isinf(cast) & torch.isfinite(values.to(torch.float64))).nonzero()
    if not len(lost):
        return
    at = int(lost[0, 0])
    index, left = [], first + at
    for extent in reversed(spec.shape):
        index.append(left % extent)
        left //= extent
    position = f"index {index[::-1]}"
    if len(index) == 2:
        position = f"row {index[1]}, column {index[0]}"
    raise CodecError(
        f"the value at {position} is {float(values[at]):.6g}, which overflows {dtype}",
        location=spec.name,
        hint=_WIDER,
    )
