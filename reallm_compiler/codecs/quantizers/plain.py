"""Quantizer `none`: the latent itself, in a float type."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import Latent, QuantizerCodec, RowDecoder, Shape
from reallm_compiler.codecs.numerics.numbers import stored
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.stages import NoQuantizer, Range
from reallm_compiler.storage.base import DTYPES

HINT = "store them with `dtype: bfloat16` or `float32`"


class PlainCodec(QuantizerCodec[NoQuantizer]):
    """Numbers."""

    def coder(
        self,
        params: NoQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> ColumnCoder:
        """Rounds to the stored type."""
        name = latent.source_dtype if params.dtype == "source" else DTYPES[params.dtype]
        return PlainCoder(latent.values, name)

    def decoder(
        self,
        params: NoQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> RowDecoder:
        """The stored numbers."""
        return PlainDecoder(sections["values"], dtype)


class PlainCoder(ColumnCoder):
    """Rounds weights to a float type.

    Args:
        values: the latent [p, q], whose shape and device are meant.
        name: the stored type, a name of the container.
    """

    def __init__(self, values: Tensor, name: str) -> None:
        self._stored = torch.empty(values.shape, dtype=TORCH_DTYPES[name], device=values.device)

    def quantize(
        self, block: Tensor, columns: slice, *, rows: slice = slice(None), decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The stored numbers [n, m], and the same in the precision of the work.

        Raises:
            CodecError: the stored type is too narrow for the values.
        """
        values = stored(block, self._stored.dtype, "values", HINT)
        if values.shape == self._stored.shape:
            self._stored = values
        else:
            self._stored[rows, columns] = values
        return values, values.to(block.dtype) if decode else None

    def sections(self) -> Sections:
        """The numbers."""
        return {"values": self._stored}


class PlainDecoder(RowDecoder):
    """Rows of a latent that was stored as numbers."""

    def __init__(self, values: Tensor, dtype: torch.dtype) -> None:
        self._values = values
        self._dtype = dtype

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        return self._values[first:last].to(self._dtype, copy=True)
