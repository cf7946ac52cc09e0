"""The contract of a codec of scales: what a latent is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.contract.rows import Shape
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import (
    ScalesStage,
)

S = TypeVar("S", bound=ScalesStage)


class ScalesCodec(Generic[S]):
    """The codec of a kind of scales; this one has none."""

    def encode(
        self,
        params: S,
        latent: Tensor,
        *,
        reach: float = 1.0,
        stretch: float | Tensor = 1.0,
        clip: Tensor | None = None,
    ) -> Sections:
        """Sections of the scales of a latent [p, q].

        Args:
            params: the stage.
            latent: the latent.
            reach: how many deviations of a normal latent the quantizer's levels shall span.
            stretch: what the scales are multiplied by, one of `ScalesStage.stretches`; or float32
                [groups], one for each.
            clip: the share of its largest magnitude to which the levels of each group reach,
                [groups]; None for all of it. For kinds with `ScalesStage.searched`.
        """
        return {}

    def decoder(
        self, params: S, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ScaleField | None:
        """The scales of a latent [p, q] in the precision `dtype`; None without any."""
        return None

    def between(self, params: S, least: Tensor, largest: Tensor) -> Sections:
        """Sections of scales whose levels reach from `least` to `largest`, each [groups].

        For kinds with `ScalesStage.from_ends`. Floats are float32 of stored values, and gradients
        reach both ends through them.
        """
        raise NotImplementedError

    def sections(self, params: S, field: ScaleField) -> Sections:
        """Sections of decoded scales of one level, of which a rounding chose some anew.

        For kinds with `ScalesStage.grouped`.
        """
        raise NotImplementedError
