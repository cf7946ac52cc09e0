"""What the codec of an autoencoder is given: how its latent is coded, and what its group shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from reallm_compiler.codecs.latent import LatentCoder
from reallm_compiler.codecs.watch import Unwatched, Watch


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """The surroundings of one matrix, or of one share group.

    Attributes:
        coder: codes the latent.
        shape: p and q of the matrix.
        seed: of the matrix or the group.
        shared: sections of the matrix's share group; empty without one, or while it is fitted.
        watch: looks on a training.
    """

    coder: LatentCoder
    shape: tuple[int, int]
    seed: int
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    watch: Watch = field(default_factory=Unwatched)
