"""The identity autoencoder: the latent is the matrix itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import (
    AutoencoderCodec,
    Coding,
    LatentCoder,
    LatentDecoder,
    LearnTables,
    RowDecoder,
    Shape,
)
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import Identity


class IdentityCodec(AutoencoderCodec[Identity]):
    """Nothing is stored but the latent."""

    def encode(
        self, params: Identity, target: Tensor, coding: Coding, learn: LearnTables
    ) -> Sections:
        """Sections of a matrix [p, q], which is used up."""
        return coding.coder.encode(target, coding.shared)

    def fit_group(
        self,
        params: Identity,
        members: Iterable[tuple[Coding, Tensor]],
        count: int,
        generator: torch.Generator,
        learn: LearnTables,
    ) -> Sections:
        """The tables of a share group of `count` members, each used up."""
        # A generator's frame would hold each matrix while the next one is made.
        return learn(map(_with_coder, members), count, generator)

    def decoder(
        self,
        params: Identity,
        shape: Shape,
        sections: Mapping[str, Tensor],
        latent: LatentDecoder,
        dtype: torch.dtype,
        *,
        in_group: bool,
    ) -> RowDecoder:
        """The decoder of the latent."""
        return latent


def _with_coder(member: tuple[Coding, Tensor]) -> tuple[LatentCoder, Tensor]:
    coding, target = member
    return coding.coder, target
