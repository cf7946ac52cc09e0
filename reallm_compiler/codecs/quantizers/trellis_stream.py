"""The stream of a row of trellis codes, and the states that are read from it.

Codes lie one after the other, least significant bit first, in the coded order. The state after a
code is the window of `state_bits` bits that ends with it, zeros before the first code: its newest
bits are its high ones, and any state can be read without those before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.trellis import column_widths, high_rate_columns, row_bytes

FRONT = 2
"""Zero bytes before a row: a window of 16 bits that ends with its first code begins there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HighRate:
    """The columns with codes of one bit more.

    Attributes:
        mask: bool [q].
        scale: float32 [1], what table values are multiplied by in these columns.
    """

    mask: Tensor
    scale: Tensor

    @staticmethod
    def read(sections: Mapping[str, Tensor], columns: int) -> HighRate | None:
        """What a latent of so many columns has stored; None if all have the same width."""
        if "high_rate" not in sections:
            return None
        mask = unpack(sections["high_rate"], 1, columns).to(torch.bool)
        return HighRate(mask=mask, scale=sections["high_rate_scale"])

    def sections(self) -> Sections:
        """The mask and the scale."""
        return {"high_rate": pack(self.mask.to(torch.uint8), 1), "high_rate_scale": self.scale}

    def factors(self) -> Tensor:
        """float32 [q]: the scale in its columns, ones elsewhere."""
        return torch.where(self.mask, self.scale, torch.ones_like(self.scale))


class RowStream:
    """How the codes of rows of q columns lie in their streams.

    Args:
        params: the quantizer.
        columns: q.
        high_rate: the columns with one bit more; None if all have the same width.

    Attributes:
        widths: bits of each code, in the coded order.
        order: int64 [q], the columns in the coded order; None if that is their own.
    """

    def __init__(self, params: TrellisQuantizer, columns: int, high_rate: HighRate | None) -> None:
        self._state_bits = params.state_bits
        self.widths = column_widths(params, columns)
        self.nbytes = row_bytes(params, columns)
        self.order: Tensor | None = None
        if high_rate is not None:
            mask = high_rate.mask.cpu()
            if int(mask.sum()) != high_rate_columns(params, columns):
                raise CodecError("the mask marks another number of high-rate columns than the plan")
            wide = torch.tensor(self.widths) > params.widths[0]
            self.order = torch.empty(columns, dtype=torch.int64)
            self.order[wide] = mask.nonzero()[:, 0]
            self.order[~wide] = (~mask).nonzero()[:, 0]

    @cached_property
    def ends(self) -> Tensor:
        """int64 [q]: bits of the stream up to and with each code."""
        return torch.tensor(self.widths).cumsum(0)

    def pack(self, codes: Tensor) -> Tensor:
        """Streams uint8 [n, bytes of a row] of codes uint8 [n, q] in the coded order."""
        start = self.ends - torch.tensor(self.widths)
        shifted = codes.to(torch.int32) << (start % 8).to(codes.device, torch.int32)
        index = (start // 8).to(codes.device)
        stream = torch.zeros(len(codes), self.nbytes + 1, dtype=torch.int32, device=codes.device)
        stream.index_add_(1, index, shifted & 0xFF)
        stream.index_add_(1, index + 1, shifted >> 8)
        return stream[:, :-1].to(torch.uint8)

    def states(self, streams: Tensor) -> Tensor:
        """States int32 [n, q] of streams uint8 [n, bytes of a row], columns in their own order."""
        first = self._window.to(streams.device)
        padded = torch.nn.functional.pad(streams, (FRONT, 2)).to(torch.int32)
        words = padded[:, :-2] | padded[:, 1:-1] << 8 | padded[:, 2:] << 16
        states = words.index_select(1, first // 8)
        states >>= (first % 8).to(torch.int32)
        return states.bitwise_and_(2**self._state_bits - 1)

    @cached_property
    def _window(self) -> Tensor:
        """int64 [q]: the first bit of each column's window, counted from the front."""
        first = self.ends - self._state_bits + 8 * FRONT
        if self.order is None:
            return first
        own = torch.empty_like(first)
        own[self.order] = first
        return own
