"""The transform `normalize`: the matrix divided by scales of its own blocks.

The same arithmetic as the scales of a latent (`codecs.scales`), with what a reader will decode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import MatrixTransform, Shape, TransformCodec, Trial
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.scales import MagnitudeCodec
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import Mixing
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Normalize
from reallm_compiler.storage.normalize import ROLE, as_scales

_LATENT_ROLE = "scales"
"""What the array is called among the scales of a latent."""


def _codec(params: Normalize) -> MagnitudeCodec:
    return MagnitudeCodec(2.0 if params.by == "rms" else math.inf)


class NormalizeCodec(TransformCodec[Normalize]):
    """Scales of the matrix's own blocks."""

    def encode(
        self, params: Normalize, matrix: Tensor, trial: Trial | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections of the scales of a matrix [p, q], and the matrix divided by them, in place."""
        stage = as_scales(params)
        made = _codec(params).encode(stage, matrix)
        sections = {ROLE + role.removeprefix(_LATENT_ROLE): values for role, values in made.items()}
        shape = (matrix.shape[0], matrix.shape[1])
        field = self.decoder(params, shape, sections, matrix.dtype).field
        return sections, field.normalize_(matrix)

    def decoder(
        self, params: Normalize, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Normalization:
        """The scales of a matrix [p, q]."""
        stage = as_scales(params)
        own = {
            _LATENT_ROLE + role.removeprefix(ROLE): values
            for role, values in sections.items()
            if role == ROLE or role.startswith(f"{ROLE}_")
        }
        return Normalization(_codec(params).decoder(stage, shape, own, dtype))


class Normalization(MatrixTransform):
    """T(W) = W divided by scales.

    Args:
        field: the decoded scales of W.
    """

    def __init__(self, field: ScaleField) -> None:
        self.field = field

    def apply_(self, matrix: Tensor) -> Tensor:
        """T(W) in the place of W [p, q]."""
        return self.field.normalize_(matrix)

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of W in the place of those of T(W)."""
        return self.field.restore_(rows, first)

    def inputs(self, x: Tensor) -> Tensor:
        """s x for scales of columns or of the whole; x as it is for scales of rows."""
        self._check()
        return x if self.field.per == "row" else x * self.field.scale.to(x.device, x.dtype)

    def outputs(self, y: Tensor) -> Tensor:
        """s y for scales of rows; y as it is for others."""
        self._check()
        return y * self.field.scale.to(y.device, y.dtype) if self.field.per == "row" else y

    def mixing(self) -> tuple[Mixing, Mixing] | None:
        """The scales on the side that they belong to; None for scales of blocks."""
        if self.field.per == "block":
            return None
        if self.field.per == "row":
            return Mixing(), Mixing(factors=self.field.scale)
        count = self.field.shape[1]
        return Mixing(factors=self.field.scale.expand(count)), Mixing()

    def _check(self) -> None:
        if self.field.per == "block":
            raise CodecError("scales of blocks do not act on inputs and outputs separately")
