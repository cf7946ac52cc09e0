"""The contract of a codec: what each stage does to weights, and back.

Each kind has one codec object, which holds no data; `params` are the kind's parameters. What a
codec stores are exactly the sections of the kind's size law (`reallm_compiler.storage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.callback import NoCallback, TrainingCallback
from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.codecs.windows import Mixing, StoredFactors, WindowValues
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import (
    AutoencoderStage,
    PermutationStage,
    QuantizerStage,
    Range,
    ResidualStage,
    ScalesStage,
    TransformStage,
)

Shape = tuple[int, int]

PANEL = 1 << 18
"""Weights of a panel of rows, about: a megabyte of float32."""


class RowDecoder:
    """Decodes rows of a matrix or a latent.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step: int = 1

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), a fresh contiguous tensor [last - first, q]."""
        raise NotImplementedError

    def fill(self, out: Tensor, first: int, scales: ScaleField | None) -> bool:
        """Rows first, first + 1, ..., scaled, into `out` [n, q] by a faster way than `rows`.

        Returns:
            False, and nothing is done, where there is no such way.
        """
        return False


# ---- residual --------------------------------------------------------------------------------


class ResidualTerm:
    """A decoded residual R [p, q]; this one is zero."""

    def add_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of R added to `rows` [n, q] in place."""
        return rows

    def taken_from(self, weight: Tensor) -> Tensor:
        """`weight` [p, q] less R, a fresh tensor."""
        return weight.clone()

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """L1 [p, r] and L2 [r, q] of R = L1 L2; None if R is no such product."""
        return None


R = TypeVar("R", bound=ResidualStage)


class ResidualCodec(Generic[R]):
    """The codec of a kind of residual; this one keeps nothing."""

    def metric(self, params: R, statistics: MatrixStatistics) -> Metric | None:
        """What errors of the matrix cost where it is fitted; None for their squares."""
        return None

    def encode(
        self,
        params: R,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        metric: Metric | None = None,
    ) -> Sections:
        """Sections of the residual that follows `weight` best.

        Args:
            params: the stage.
            weight: [p, q], the matrix or what the coded part and other residuals leave of it.
            generator: of the matrix, on the CPU.
            whole: the matrix itself, against which losses by the stored type are held.
            metric: in which `weight` is followed, of `metric`; for a kind that needs statistics.
        """
        return {}

    def refined(
        self,
        params: R,
        sections: Mapping[str, Tensor],
        rest: Tensor,
        whole: Tensor,
        metric: Metric | None,
    ) -> Sections:
        """Its sections fitted once more after coding, for a kind that is `refined`.

        Args:
            params: the stage.
            sections: as `encode` made them.
            rest: [p, q], what the coded part and other residuals leave of the matrix.
            whole: the matrix itself.
            metric: in which the codes were chosen; None for the metric of weights.
        """
        return dict(sections)

    def decoder(
        self, params: R, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ResidualTerm | None:
        """The stored residual of a matrix [p, q]; None if `sections` hold none."""
        return None

    def factors(self, params: R, sections: Mapping[str, Tensor]) -> StoredFactors | None:
        """L1 and L2 as they are stored, for kernels; None where the residual is no such product."""
        return None


# ---- transform -------------------------------------------------------------------------------


class MatrixTransform:
    """A transform T of one matrix W [p, q], invertible.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step: int = 1

    def apply_(self, matrix: Tensor) -> Tensor:
        """T(W) in the place of W [p, q]."""
        raise NotImplementedError

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of W in the place of those of T(W)."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """x' = A x of activations x [..., q], where W x = `outputs`(T(W) x').

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def outputs(self, y: Tensor) -> Tensor:
        """B y of y = T(W) x' [..., p]; see `inputs`.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def mixing(self) -> tuple[Mixing, Mixing] | None:
        """`inputs` and `outputs` as data for kernels; None where they are nothing of that form."""
        return None

    def gram(self, gram: Tensor) -> Tensor:
        """E[x' x'^T] = A G A^T of a Gram matrix G = E[x x^T] [q, q] of the inputs.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        return self.inputs(self.inputs(gram).transpose(-1, -2)).transpose(-1, -2)

    def gradients(self, g: Tensor) -> Tensor:
        """B^T g of gradients g [..., p] at the outputs of W; see `outputs`.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def gradient_gram(self, gram: Tensor) -> Tensor:
        """B^T G B of G = E[g g^T] [p, p]: the same of the gradients at the outputs of T(W).

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        return self.gradients(self.gradients(gram).transpose(-1, -2)).transpose(-1, -2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a transform that needs statistics is chosen by.

    Attributes:
        statistics: of the matrix W.
        coded: T(W) [p, q], which is not kept -> the same as the later stages would bring it back,
            a fresh tensor; with nearest codes, columns in their own order and scales unsearched.
    """

    statistics: MatrixStatistics
    coded: Callable[[Tensor], Tensor]


T = TypeVar("T", bound=TransformStage)


class TransformCodec(Generic[T]):
    """The codec of a kind of transform."""

    def encode(
        self, params: T, matrix: Tensor, trial: Trial | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections, and the matrix [p, q] transformed in its place.

        Args:
            params: the stage.
            matrix: the matrix.
            trial: what it is chosen by, for a kind that needs statistics.
        """
        raise NotImplementedError

    def decoder(
        self, params: T, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> MatrixTransform:
        """The transform of a matrix [p, q] as stored."""
        raise NotImplementedError


# ---- permutation -----------------------------------------------------------------------------


class ColumnOrder:
    """Stored orders of the columns of a latent, and perhaps of its rows.

    Attributes:
        rows: int64 [p], the rows of the latent in the order that is coded; None for their own.
    """

    rows: Tensor | None = None

    def restore(self, rows: Tensor, first: int) -> Tensor:
        """Decoded rows first, first + 1, ... [n, q] with their columns back where they belong; all
        rows at once where these are in order, and they are back then too.
        """
        raise NotImplementedError

    def coded(self, first: int) -> tuple[Tensor | None, int | None]:
        """int64 [q], the columns of coded row `first` in the order that is coded, None for their
        own; and the row from which on another order holds, None if this one holds to the end.
        """
        raise NotImplementedError


O = TypeVar("O", bound=PermutationStage)  # noqa: E741 - order


class PermutationCodec(Generic[O]):
    """The codec of a kind of permutation; this one leaves columns where they are."""

    def encode(
        self, params: O, latent: Tensor, moments: Metric | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections, and the latent [p, q] in the order that is coded.

        Args:
            params: the stage.
            latent: the latent.
            moments: E[x x^T] of its inputs and E[g g^T] of the gradients at its outputs, if these
                were measured; for a kind that needs statistics.
        """
        return {}, latent

    def decoder(
        self, params: O, shape: Shape, sections: Mapping[str, Tensor]
    ) -> ColumnOrder | None:
        """The stored orders; None without any."""
        return None


# ---- scales ----------------------------------------------------------------------------------

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


# ---- quantizer -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """What a quantizer is given.

    Attributes:
        values: the normalized latent [p, q], float32 (float64 for a float64 source).
        scales: the decoded scales; None if the latent was not scaled.
        range: where the scales put the values, and so where levels lie.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        generator: the matrix's or the group's own source of random numbers, on the CPU.
    """

    values: Tensor
    scales: ScaleField | None
    range: Range
    source_dtype: str
    generator: torch.Generator


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
        """Tables learned from `count` latents, each used up; empty if the kind learns none."""
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


# ---- autoencoder -----------------------------------------------------------------------------


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
