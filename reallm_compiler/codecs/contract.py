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
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import (
    AutoencoderStage,
    PermutationStage,
    QuantizerStage,
    ResidualStage,
    RoundingStage,
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

    def encode(
        self,
        params: R,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        gram: Tensor | None = None,
    ) -> Sections:
        """Sections of the residual that follows `weight` best.

        Args:
            params: the stage.
            weight: [p, q], the matrix or what the coded part leaves of it.
            generator: of the matrix, on the CPU.
            whole: the matrix itself, against which losses by the stored type are held.
            gram: [q, q], E[x x^T] of the inputs, or its diagonal [q]; for a kind that needs
                statistics.
        """
        return {}

    def decoder(
        self, params: R, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ResidualTerm | None:
        """The stored residual; None if `sections` hold none, as in a frozen part alone."""
        return None


# ---- transform -------------------------------------------------------------------------------


class MatrixTransform:
    """A transform T of one matrix W [p, q], invertible.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step: int = 1

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


T = TypeVar("T", bound=TransformStage)


class TransformCodec(Generic[T]):
    """The codec of a kind of transform."""

    def encode(self, params: T, matrix: Tensor) -> tuple[Sections, Tensor]:
        """Sections, and the matrix [p, q] transformed in its place."""
        raise NotImplementedError

    def decoder(
        self, params: T, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> MatrixTransform:
        """The transform of a matrix [p, q] as stored."""
        raise NotImplementedError


# ---- permutation -----------------------------------------------------------------------------


class ColumnOrder:
    """Stored orders of the columns of a latent."""

    def restore(self, rows: Tensor, first: int) -> Tensor:
        """Decoded rows first, first + 1, ... [n, q] with their columns back where they belong."""
        raise NotImplementedError

    def coded(self, first: int) -> tuple[Tensor, int | None]:
        """int64 [q], the columns of row `first` in the order that is coded; and the row from which
        on another order holds, None if this one holds to the end.
        """
        raise NotImplementedError


O = TypeVar("O", bound=PermutationStage)  # noqa: E741 - order


class PermutationCodec(Generic[O]):
    """The codec of a kind of permutation; this one leaves columns where they are."""

    def encode(self, params: O, latent: Tensor) -> tuple[Sections, Tensor]:
        """Sections, and the latent [p, q] in the order that is coded."""
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
    ) -> Sections:
        """Sections of the scales of a latent [p, q].

        Args:
            params: the stage.
            latent: the latent.
            reach: how many deviations of a normal latent the quantizer's levels shall span.
            stretch: what the scales are multiplied by, one of `ScalesStage.stretches`; or float32
                [groups], one for each.
        """
        return {}

    def decoder(
        self, params: S, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> ScaleField | None:
        """The scales of a latent [p, q] in the precision `dtype`; None without any."""
        return None


# ---- quantizer -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """What a quantizer is given.

    Attributes:
        values: the normalised latent [p, q], float32 (float64 for a float64 source).
        scales: the decoded scales; None if the latent was not scaled.
        unit_range: levels lie on [0, 1] (`minmax` scales) instead of [-1, 1].
        source_dtype: type of the checkpoint's tensor, a name of the container.
        generator: the matrix's or the group's own source of random numbers, on the CPU.
    """

    values: Tensor
    scales: ScaleField | None
    unit_range: bool
    source_dtype: str
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFeedback:
    """How errors of a row's columns move the targets of its later columns, in the coded order.

    target_t = w_t + sum_{s<t} U[s, t] (w_s - v_s), and an error of that target costs D_t times its
    square; the costs of a row e add up to e H e^T for H = U diag(D) U^T.

    Attributes:
        upper: float32 [q, q], the strictly upper triangle of U; where a coder takes `step` columns
            at once, zero within them too.
        importance: float32 [q], D.
        scales: float32 [n, q] or [1, q], what normalised values are multiplied by before errors
            are compared.
        zeros: of the same shape, what is added to them then; None for zeros.
        rescale: (targets [n, m] of the columns of a group, first column) -> scales and zeros, each
            [n, 1], for these columns from now on; None where scales stay as they are.
        group: columns of a group, whose scales in a row are equal.
    """

    upper: Tensor
    importance: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    rescale: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None
    group: int = 1


LAZY = 128
"""Columns whose errors are moved to the columns behind them by one product of matrices."""


def _by_columns(values: Tensor) -> Tensor:
    """A copy of a matrix [n, m] whose columns lie together in memory, as they are worked on."""
    return values.t().clone(memory_format=torch.contiguous_format).t()


class ColumnCoder:
    """Codes the columns of one latent [p, q] from left to right, a block at a time.

    How a block is chosen is the business of the rounding: the latent as it is (`nearest`), or with
    the errors of earlier columns carried into it.

    Attributes:
        step: columns at a multiple of which a block must begin.
        row_step: rows at a multiple of which a block must begin.
        order: int64 [q], the columns in the order in which they are coded; None for their own.
        trials: how many factors of the scales are tried at once, each on the codes of other rows.
            Above 1 the codes of a row must not depend on which row it is, and its first columns
            can be coded without the rest.
    """

    step: int = 1
    row_step: int = 1
    order: Tensor | None = None
    trials: int = 1

    def quantize(
        self, block: Tensor, columns: slice, *, rows: slice = slice(None), decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Codes of a block [n, m] of normalised values, given the columns that were coded before.

        Args:
            block: values for the columns, which may differ from the latent's own.
            columns: first and last of them in the coded order; the first is where the last block
                of these rows ended.
            rows: first and last row of the block; all rows by default.
            decode: whether the decoded values are wanted.

        Returns:
            the codes, in the quantizer's own form, and the decoded normalised values [n, m].
        """
        raise NotImplementedError

    @torch.inference_mode()  # a fifth faster: the time goes into many small steps
    def quantize_rows(self, values: Tensor, rows: slice, feedback: RowFeedback) -> Tensor:
        """Codes whole rows with the errors of earlier columns carried into later ones.

        Args:
            values: float32 [n, q], normalised, in the coded order.
            rows: first and last of them.
            feedback: how errors are carried.

        Returns:
            the decoded values [n, q], scaled.
        """
        columns, upper, step = values.shape[1], feedback.upper, self.step
        scales, zeros, rescale = feedback.scales, feedback.zeros, feedback.rescale
        wanted = _by_columns(values * scales if zeros is None else values * scales + zeros)
        targets, decoded = wanted.clone(), torch.empty_like(wanted)
        # Views [n, step] of all steps at once: making them one by one costs as much as the work.
        whole = (targets, wanted, decoded, _by_columns(upper))
        by_step = [torch.split(each, step, dim=1) for each in whole]
        block = max(LAZY // step, 1) * step
        scale, zero, divisor = scales, zeros, scales
        for first in range(0, columns, block):
            last = min(first + block, columns)
            errors = values.new_zeros(last - first, len(values)).t()
            for column in range(first, last, step):
                span = slice(column, min(column + step, last))
                target, original, value, carry = (views[column // step] for views in by_step)
                before = errors[:, : column - first]
                if rescale is None or column % feedback.group == 0:
                    scale = scales[:, span]
                    zero = None if zeros is None else zeros[:, span]
                    if rescale is not None:
                        stop = column + feedback.group
                        group = targets[:, column:stop].contiguous()
                        inner = min(stop, last)
                        group[:, : inner - column] += before @ upper[first:column, column:inner]
                        if torch.equal(group, wanted[:, column:stop]):
                            scale = scale[:, :1].contiguous()
                            zero = None if zero is None else zero[:, :1].contiguous()
                        else:
                            scale, zero = rescale(group, column)
                    divisor = torch.where(scale > 0, scale, torch.inf)
                if column > first:
                    target = torch.addmm(target, before, carry[first:column])
                if zero is not None:
                    target = target - zero
                _, level = self.quantize(target / divisor, span, rows=rows)
                assert level is not None
                torch.mul(level, scale, out=value)
                if zero is not None:
                    value += zero
                errors[:, column - first : span.stop - first] = original - value
            targets[:, last:].addmm_(errors, upper[first:last, last:])
        return decoded

    def sections(self) -> Sections:
        """Sections of the codes, once every column of every row was coded."""
        raise NotImplementedError


Q = TypeVar("Q", bound=QuantizerStage)


class QuantizerCodec(Generic[Q]):
    """The codec of a kind of quantizer."""

    def reach(self, params: Q) -> float:
        """How many deviations of a normal latent its levels shall span under `rms` scales.

        1 where levels are learned.
        """
        return 1.0

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
        unit_range: bool,
    ) -> RowDecoder:
        """A decoder of the normalised latent [p, q]."""
        raise NotImplementedError


# ---- rounding --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What an error E [p, q] of a latent costs: tr(G E H E^T).

    Attributes:
        inputs: H [q, q], symmetric and positive semidefinite, float64.
        outputs: G [p, p], likewise; None for the identity.
    """

    inputs: Tensor
    outputs: Tensor | None = None


class LatentStages(Protocol):
    """The stages of one latent [p, q] before its codes are chosen."""

    @property
    def metric(self) -> Metric | None:
        """What errors of the latent cost, its columns not yet permuted; given if the rounding
        needs statistics.
        """
        ...

    @property
    def order(self) -> ColumnOrder | None:
        """How the columns are permuted."""
        ...

    @property
    def stretches(self) -> tuple[float, ...]:
        """Factors of the scales that the rounding may choose from, in the order of trial."""
        ...

    @property
    def group(self) -> int | None:
        """Consecutive columns of a row that have a scale of their own, which `rescale` can choose
        anew; None where scales lie or are stored otherwise.
        """
        ...

    def rescale(
        self,
        targets: Tensor,
        rows: slice | None,
        column: int,
        stretch: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scales and zeros [n, 1] for what rows of a group of columns have become, as stored.

        Args:
            targets: [n, group], in the units of the latent.
            rows: first and last row; None for a trial, of which nothing is kept.
            column: the first column of the group.
            stretch: what the scales are multiplied by, or float32 [n] of the rows; that of the
                last `scaled` by default.
        """
        ...

    def scaled(self, stretch: float = 1.0) -> Latent:
        """The latent with its scales, which are kept for the archive.

        Args:
            stretch: what the scales are multiplied by, where `ScalesStage.stretches`.
        """
        ...

    def coder(self, latent: Latent, importance: Tensor | None = None) -> ColumnCoder:
        """A coder of a scaled latent; the first call learns the tables if there are none."""
        ...


U = TypeVar("U", bound=RoundingStage)


class RoundingCodec(Generic[U]):
    """The codec of a kind of rounding; this one takes the nearest codes."""

    def metric(self, params: U, statistics: MatrixStatistics) -> Metric | None:
        """What errors of the matrix cost, in float64; None if that does not matter."""
        return None

    def encode(self, params: U, stages: LatentStages) -> ColumnCoder:
        """Chooses the codes of a latent: the coder that holds them."""
        latent = stages.scaled()
        coder = stages.coder(latent)
        columns = slice(0, latent.values.shape[1])
        if coder.order is None:
            coder.quantize(latent.values, columns, decode=False)
            return coder
        step = max(PANEL // latent.values.shape[1] // coder.row_step, 1) * coder.row_step
        for first in range(0, len(latent.values), step):
            rows = slice(first, min(first + step, len(latent.values)))
            coder.quantize(latent.values[rows][:, coder.order], columns, rows=rows, decode=False)
        return coder


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
        """Orders and normalises a latent, which is used up: what is quantised."""
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
