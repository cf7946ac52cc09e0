"""Lattice quantizer E8P: vectors of 8 columns by their nearest point of a part of E8 (QuIP#).

At 3 and 4 bits what is left is coded once more, x^ = Q(x) + Q'((x - Q(x)) g) / g: with the 256
shortest points of E8, or with E8P again. The points have the density that a normal distribution
wants at a certain scale, so `hadamard` and `rms` scales go with it.

Source: Tseng et al. 2024 (QuIP#), sections 4.2 and 4.3; the scales are those of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Latent, QuantizerCodec, RowDecoder, Shape
from reallm_compiler.codecs.numerics.assignment import assign
from reallm_compiler.codecs.numerics.lattice import SHIFT, e8_words, e8p_points, nearest_e8p
from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.codecs.quantizers.scalar import look_up
from reallm_compiler.codecs.quantizers.vector_grid import GridCoder
from reallm_compiler.codecs.quantizers.vq import VectorDecoder
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.stages import E8PQuantizer, Range
from reallm_compiler.storage.e8p import FIRST_BITS, rest_bits

SCALES = {2: 1.03, 3: 0.98, 4: 1.03}
"""What a normal vector of deviation 1 is multiplied by, by bits: it loses least so."""

GAINS = {3: 2.04, 4: 3.45}
"""g, what the rest is multiplied by before it is coded, by bits."""


class E8PCoder(GridCoder):
    """Codes the vectors of a latent.

    Args:
        params: the quantizer.
        latent: the latent.
    """

    def __init__(self, params: E8PQuantizer, latent: Latent) -> None:
        super().__init__(params, latent, torch.int64)
        like = latent.values
        self._bits = params.bits
        self._points = e8p_points().to(like.device, like.dtype)
        self._rest = _rest_points(params, like.device, like.dtype)

    def _nearest(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """The code of the point, and above it that of the rest."""
        code = nearest_e8p(values, weights)
        if self._rest is None:
            return code
        rest = (values - look_up(self._points, code)) * GAINS[self._bits]
        if self._bits == 4:
            return code | nearest_e8p(rest, weights) << FIRST_BITS
        return code | assign(rest, weights, self._rest) << FIRST_BITS

    def _decoded(self, codes: Tensor) -> Tensor:
        values = look_up(self._points, codes % (1 << FIRST_BITS))
        if self._rest is not None:
            values = values + look_up(self._rest, codes >> FIRST_BITS) / GAINS[self._bits]
        return values

    def sections(self) -> Sections:
        """The packed codes."""
        first = {"codes": pack(self._codes % (1 << FIRST_BITS), FIRST_BITS)}
        if self._rest is None:
            return first
        width = len(self._rest).bit_length() - 1
        return first | {"rest_codes": pack(self._codes >> FIRST_BITS, width)}


class E8PDecoder(RowDecoder):
    """Rows of codes of a latent [p, q]."""

    def __init__(
        self,
        params: E8PQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        codes = sections["codes"]
        points = e8p_points().to(codes.device, dtype)
        self._first = VectorDecoder(params, shape, codes, points, FIRST_BITS)
        rest = _rest_points(params, codes.device, dtype)
        self._second: VectorDecoder | None = None
        if rest is not None:
            gain = GAINS[params.bits]
            self._second = VectorDecoder(
                params, shape, sections["rest_codes"], rest / gain, rest_bits(params)
            )

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        rows = self._first.rows(first, last)
        return rows if self._second is None else rows.add_(self._second.rows(first, last))


class E8PCodec(QuantizerCodec[E8PQuantizer]):
    """Vectors of 8 by their nearest points."""

    def reach(self, params: E8PQuantizer) -> float:
        """The inverse of the scale at which normal vectors lose least."""
        return 1 / SCALES[params.bits]

    def coder(
        self,
        params: E8PQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> E8PCoder:
        """By points that are made by rule."""
        return E8PCoder(params, latent)

    def decoder(
        self,
        params: E8PQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> E8PDecoder:
        """Points by their codes."""
        return E8PDecoder(params, shape, sections, dtype)

    def window_values(
        self, params: E8PQuantizer, shape: Shape, sections: Mapping[str, Tensor], range: Range
    ) -> WindowValues:
        """The points in quarters, which are integers; words in halves."""
        table, bits = _quarters(), rest_bits(params)
        rest: WindowValues | None = None
        if bits:
            second = table if params.bits == 4 else (e8_words() * 2).to(torch.int8)[None]
            unit = SHIFT if params.bits == 4 else 0.5
            rest = WindowValues(table=second, unit=unit / GAINS[params.bits])
        return WindowValues(table=table, unit=SHIFT, rest=rest)


@cache
def _quarters() -> Tensor:
    """int8 [1, 65536, 8]: the points in quarters, once for all matrices."""
    return (e8p_points() / SHIFT).to(torch.int8)[None]


def _rest_points(params: E8PQuantizer, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """The points of the second code; None without one."""
    if not rest_bits(params):
        return None
    return (e8p_points() if params.bits == 4 else e8_words()).to(device, dtype)
