"""The identity autoencoder: the latent is the matrix itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.autoencoder import Coding
from reallm_compiler.codecs.latent import LatentCoder, LatentReader, learn_codebook
from reallm_compiler.codecs.quantizers.scalar import RowReader
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import Identity


def encode(params: Identity, target: Tensor, coding: Coding) -> Sections:
    """Sections of a matrix [p, q], which is used up."""
    return coding.coder.encode(target, coding.shared.get("codebook"))


def fit_shared(
    params: Identity,
    members: Iterable[tuple[Coding, Tensor]],
    count: int,
    generator: torch.Generator,
) -> Sections:
    """The codebook of a share group of `count` members, each used up."""
    # A generator's frame would hold each matrix while the next one is made.
    latents = map(_latent, members)
    return {"codebook": learn_codebook(latents, count, generator)}


def _latent(member: tuple[Coding, Tensor]) -> tuple[LatentCoder, Tensor]:
    coding, target = member
    return coding.coder, target


def reader(
    params: Identity,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    latent: LatentReader,
    dtype: torch.dtype,
) -> RowReader:
    """A reader of the matrix: that of the latent."""
    return latent
