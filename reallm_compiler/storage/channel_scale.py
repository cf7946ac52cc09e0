"""Size law of the transform `channel_scale`: a float16 factor per column, or none if folded."""

from __future__ import annotations

from reallm_compiler.stages import ChannelScale
from reallm_compiler.storage.base import Context, Cost, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.values import Finite
from reallm_compiler.storage.work import PRODUCTS, TRIALS, Work

ROLE = "channel_scale"


class ChannelScaleLaw(SizeLaw[ChannelScale]):
    """One array, or nothing."""

    def sections(self, params: ChannelScale, shape: Shape, context: Context) -> list[SectionSpec]:
        """The factors of the columns of a matrix [p, q]."""
        if params.fold:
            return []
        above_zero = Finite(negative=False, zero=False)
        return [
            SectionSpec(role=ROLE, dtype="f16", shape=(shape[1],), term="scales", values=above_zero)
        ]

    def cost(self, params: ChannelScale, shape: Shape, context: Context) -> Cost:
        """The Gram matrix in float32, and the matrix scaled, coded, decoded and its error moved."""
        p, q = shape
        searched = params.alpha == "search" and not params.fold
        return Cost(host_bytes=4 * (q * q + 4 * p * q) if searched else 0)

    def work(self, params: ChannelScale, shape: Shape, context: Context) -> Work:
        """The matrix coded for each exponent, and its errors in the metric."""
        p, q = shape
        tried = params.grid if params.alpha == "search" else 0
        return {TRIALS: tried * p * q, PRODUCTS: tried * p * q * q}
