"""The contract of a codec of quantizers: what a normalized latent becomes codes by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract.rows import RowDecoder, Shape
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.stages import (
    QuantizerStage,
    Range,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """What a quantizer is given.

    Attributes:
        values: the normalized latent [p, q], float32 (float64 for a float64 source).
        scales: the decoded scales; None if the latent was not scaled.
        range: where the scales put the values, and so where levels lie.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        generator: the matrix's or the group's own source of random numbers, on the CPU.
        quantizer: its parameters; in a share group they differ in `per_matrix` alone.
    """

    values: Tensor
    scales: ScaleField | None
    range: Range
    source_dtype: str
    generator: torch.Generator
    quantizer: QuantizerStage


Q = TypeVar("Q", bound=QuantizerStage)


class QuantizerCodec(Generic[Q]):
    """The codec of a kind of quantizer."""

    def reach(self, params: Q) -> float:
        """How many deviations of a normal latent its levels shall span under `rms` scales.

        1 where levels are learned.
        """
        return 1.0

    def levels(self, params: Q, range: Range) -> Tensor | None:
        """The levels of single weights, ascending, float64; for `QuantizerStage.scalar` alone."""
        return None

    def fit(self, params: Q, latent: Latent) -> Sections:
        """Tables learned from one latent; empty if the kind learns none."""
        return {}

    def fit_group(
        self, params: Q, latents: Iterable[Latent], count: int, generator: torch.Generator
    ) -> Sections:
        """Tables learned from `count` latents, each used up; empty if the kind learns none.

        Args:
            params: the stage, but for what each latent's own parameters say in `params.per_matrix`.
            latents: the latents of the group.
            count: how many there are.
            generator: of the group.
        """
        return {}

    def coder(
        self,
        params: Q,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> ColumnCoder:
        """A coder of a latent [p, q] with the tables as stored.

        Args:
            params: the stage.
            latent: the latent.
            tables: sections of the quantizer's tables.
            importance: float64 [q], what the square of an error in each column costs; None for
                ones.
        """
        raise NotImplementedError

    def decoder(
        self,
        params: Q,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> RowDecoder:
        """A decoder of the normalized latent [p, q]."""
        raise NotImplementedError

    def window_values(
        self, params: Q, shape: Shape, sections: Mapping[str, Tensor], range: Range
    ) -> WindowValues:
        """What codes stand for in a kernel; for a kind whose size law has `code_windows`."""
        raise NotImplementedError
