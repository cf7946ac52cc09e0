"""Facts about a stored tensor, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reallm_formats.dtypes import BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint as its header describes it.

    Attributes:
        name: the name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
        dtype: element type in the container's names: `f32`, `f16`, `bf16`, `f8_e4m3`, `i64`, ...
            For a tensor with scales it is the type of the numbers after scaling.
        shape: the extents; `()` for a scalar.
        shard: the file that holds it, relative to the checkpoint's folder; empty when only
            the shape is known (a bare config).
        begin: where its first byte stands in the shard, counted from the start of the file.
        stored: element type in the shard where it is not `dtype` (a tensor with scales).
        scale: the scales that turn the stored numbers into the weights, or None.
        origin: how a prepared model's tensor is made of what is stored; None for one that is
            taken as it is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str = ""
    begin: int = 0
    stored: str = ""
    scale: ScaleSpec | None = None
    origin: Origin | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored_dtype(self) -> str:
        """Element type of the bytes in the shard."""
        return self.stored or self.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tensor takes in the shard."""
        return self.count * BITS[self.stored_dtype] // 8

    def byte_range(
        self, *, index: int | None = None, rows: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """First byte and the byte after the last, in the shard, of the tensor or a part of it.

        Args:
            index: takes one slice along the first axis, such as one expert of `[e, p, q]`.
            rows: takes the rows `first <= row < last` along the first axis of what is left.
                A range of rows lies in one piece, because tensors are stored row by row.
        """
        begin, shape = self.begin, self.shape
        size = BITS[self.stored_dtype] // 8
        if index is not None:
            shape = shape[1:]
            begin += index * math.prod(shape) * size
        first, last = (0, shape[0] if shape else 1) if rows is None else rows
        row = math.prod(shape[1:]) * size
        return begin + first * row, begin + last * row


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleSpec:
    """The scales of a tensor: weight[i, j] = stored[i, j] x scale[i // rows, j // columns].

    Attributes:
        tensor: the scales, with the shape [rows of blocks, columns of blocks]; those of a 3-D
            weight have its first axis too. A flat shape in the file is the same bytes.
        block: rows and columns of the weight, as stored, that one scale covers; the last
            block of a row or column may be smaller.
    """

    tensor: TensorSpec
    block: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationSpec:
    """A random rotation x -> x Q: Q has equal orthogonal blocks along its diagonal.

    Attributes:
        block: extent of a block.
        seed: what the block is drawn from.
    """

    block: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """How a tensor W' of a prepared model is made of a stored one:

        W' = diag(1 / t) L^T W diag(g) R diag(s)

    A bias or a norm's gains [p] are a matrix [p, 1].

    Attributes:
        tensor: name of the stored tensor W in the checkpoint.
        gain: the norm whose gains g multiply the columns, as it is stored; None for none.
        gain_offset: what is added to the stored gains: 1 for norms that scale by 1 + w.
        columns: the rotation R of the columns; None for none.
        rows: the rotation L of the rows; None for none.
        row_range: first of the rows that are rotated or divided, and the row after the last; None
            for all.
        constant: the number that fills a norm whose gains are folded away; None for none.
        column_factors: name of the factors s of the columns (`planning.folding`); None for none.
        column_heads: of the factors each `head` belong to the columns of `times` heads that follow
            each other, as (head, times).
        row_factors: likewise of the factors t by which rows are divided.
        offset: what is added to the numbers before they are divided, and taken off afterwards: 1
            for the gains of norms that scale by 1 + w.
    """

    tensor: str
    gain: TensorSpec | None = None
    gain_offset: int = 0
    columns: RotationSpec | None = None
    rows: RotationSpec | None = None
    row_range: tuple[int, int] | None = None
    constant: float | None = None
    column_factors: str | None = None
    column_heads: tuple[int, int] = (1, 1)
    row_factors: str | None = None
    offset: int = 0
