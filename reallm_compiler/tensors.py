"""Facts about a stored tensor, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint as its header describes it.

    Attributes:
        name: the name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
        dtype: element type in the container's names: `f32`, `f16`, `bf16`, `f8_e4m3`, `i64`, ...
        shape: the extents; `()` for a scalar.
        shard: the file that holds it, relative to the checkpoint's folder; empty when only
            the shape is known (a bare config).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str = ""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)
