"""The contract of a codec of autoencoders: latents of a matrix, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.callback import NoCallback, TrainingCallback
from reallm_compiler.codecs.contract.quantizer import Latent
from reallm_compiler.codecs.contract.rows import RowDecoder, Shape
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import (
    AutoencoderStage,
)


class LatentDecoder(RowDecoder):
    """Decodes a coded latent."""

    def whole(self) -> Tensor:
        """The latent, a fresh tensor."""
        raise NotImplementedError


class LatentCoder(Protocol):
    """Codes latents of one shape by permutation, scales and quantizer of a plan."""

    def encode(self, latent: Tensor, shared: Mapping[str, Tensor]) -> Sections:
        """Sections of a latent, which is used up.

        Args:
            latent: float32, or float64 for a float64 source.
            shared: sections of the share group; where they hold the quantizer's tables, these are
                used, else its own are learned.
        """
        ...

    def decoder(self, sections: Mapping[str, Tensor], dtype: torch.dtype) -> LatentDecoder:
        """A decoder of coded latents."""
        ...

    def prepare(self, latent: Tensor) -> Latent:
        """Orders and normalizes a latent, which is used up: what is quantized."""
        ...


LearnTables = Callable[[Iterable[tuple[LatentCoder, Tensor]], int, torch.Generator], Sections]
"""(coders with latents, their number, generator) -> the quantizer's common tables, or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """What an autoencoder's codec knows of one matrix, or of one member of a share group.

    Attributes:
        coder: codes the latent.
        shape: p and q of the matrix.
        seed: of the matrix or the group.
        coarse: the latent is stored in few bits.
        shared: sections of the matrix's share group, or of a decoder that is reused; empty without
            one, or while they are learned.
        in_group: the matrix belongs to a share group.
        callback: called while a network is trained.
    """

    coder: LatentCoder
    shape: Shape
    seed: int
    coarse: bool
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    in_group: bool = False
    callback: TrainingCallback = field(default_factory=NoCallback)


A = TypeVar("A", bound=AutoencoderStage)


class AutoencoderCodec(Generic[A]):
    """The codec of a kind of autoencoder."""

    def encode(self, params: A, target: Tensor, coding: Coding, learn: LearnTables) -> Sections:
        """Sections of decoder and latent of a matrix [p, q], which is used up."""
        raise NotImplementedError

    def fit_group(
        self,
        params: A,
        members: Iterable[tuple[Coding, Tensor]],
        count: int,
        generator: torch.Generator,
        learn: LearnTables,
    ) -> Sections:
        """Sections that a share group of `count` members stores once, the quantizer's tables too.

        Each member is used up.
        """
        raise NotImplementedError

    def decoder(
        self,
        params: A,
        shape: Shape,
        sections: Mapping[str, Tensor],
        latent: LatentDecoder,
        dtype: torch.dtype,
        *,
        in_group: bool,
    ) -> RowDecoder:
        """A decoder of the matrix [p, q] over the decoder of its latent."""
        raise NotImplementedError
