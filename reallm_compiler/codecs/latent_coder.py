"""The latent of a matrix on its way through permutation, scales and quantizer.

    latent -> order the columns -> scales -> quantize

How the codes are chosen is the business of the rounding (`codecs.rounding`), which is handed these
stages; the way back is `codecs.latent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs.clip import best_clip
from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import ColumnOrder, Latent, LatentCoder, Shape
from reallm_compiler.codecs.latent import StagesDecoder
from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import Metric
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan, QuantizerStage


@dataclass(frozen=True, kw_only=True, slots=True)
class StagesCoder:
    """Codes latents of one shape by the later stages of a plan (`contract.LatentCoder`).

    Attributes:
        plan: whose permutation, scales and quantizer are meant.
        shape: rows and columns of the latent.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        tables: roles of the sections that the quantizer may share.
        generator: the matrix's own source of random numbers, on the CPU.
        metric: of the latent's errors; None without statistics.
        moments: E[x x^T] of its inputs and E[g g^T] of the gradients at its outputs; None where no
            stage needs them.
    """

    plan: MatrixPlan
    shape: Shape
    source_dtype: str
    tables: tuple[str, ...]
    generator: torch.Generator
    metric: Metric | None = None
    moments: Metric | None = None

    def encode(self, latent: Tensor, shared: Mapping[str, Tensor]) -> Sections:
        """Sections of a latent of the coder's shape, which is used up.

        Args:
            latent: float32, or float64 for a float64 source.
            shared: sections of the share group; where they hold the quantizer's tables, these are
                used, else its own are learned.
        """
        tables = {role: shared[role] for role in self.tables if role in shared}
        stages = _Stages(self, latent, tables)
        del latent
        rounding = self.plan.rounding
        coder: ColumnCoder = codec_of(rounding).encode(rounding, stages)
        return {**stages.sections, **coder.sections(), **stages.learned}

    def decoder(self, sections: Mapping[str, Tensor], dtype: torch.dtype) -> StagesDecoder:
        """A decoder of coded latents."""
        return StagesDecoder(self.plan, self.shape, sections, dtype)

    def prepare(self, latent: Tensor) -> Latent:
        """Orders and normalizes a latent, which is used up: what is quantized."""
        return _Stages(self, latent, {}).scaled()


class _Stages:
    """The stages of one latent before its codes are chosen (`rounding.LatentStages`).

    Args:
        given: the plan and what belongs to it.
        latent: [p, q], which is used up.
        tables: the quantizer's tables where they are given.

    Attributes:
        learned: sections of the tables that were learned.
    """

    def __init__(self, given: StagesCoder, latent: Tensor, tables: Mapping[str, Tensor]) -> None:
        plan = given.plan
        self._given = given
        self._tables = tables
        self.learned: Sections = {}
        self._ordered, self._latent = codec_of(plan.permutation).encode(
            plan.permutation, latent, given.moments
        )
        self._scales: Sections = {}
        self._applied: ScaleField | None = None
        self._rescaled = False
        self._clip: Tensor | None = None
        if plan.scales.range == "free" and plan.quantizer.coarse and unit(self._latent) != 1:
            raise CodecError(
                f"numbers up to {float(self._latent.abs().max()):.6g} are coded without scales, "
                "and float32 does not hold their squares, by which codes are chosen",
                hint="give the matrix `scales`, such as `{kind: rms, per: tensor}`",
            )

    @property
    def metric(self) -> Metric | None:
        """What errors of the latent cost."""
        metric, order = self._given.metric, self.order
        if metric is None or metric.outputs is None or order is None or order.rows is None:
            return metric
        return replace(metric, outputs=metric.outputs[order.rows][:, order.rows])

    @cached_property
    def order(self) -> ColumnOrder | None:
        """How columns and rows are permuted."""
        plan = self._given.plan
        codec = codec_of(plan.permutation)
        order: ColumnOrder | None = codec.decoder(
            plan.permutation, self._given.shape, self._ordered
        )
        return order

    @property
    def stretches(self) -> tuple[float, ...]:
        """Factors of the scales that may be chosen."""
        scales = self._given.plan.scales
        return () if scales.searched else scales.stretches

    @property
    def group(self) -> int | None:
        """Consecutive columns of a row that `rescale` can choose a scale for."""
        plan, columns = self._given.plan, self._given.shape[1]
        return plan.scales.grouped(columns) or None

    def rescale(
        self,
        targets: Tensor,
        rows: slice | None,
        column: int,
        stretch: float | Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros [n, 1] for what a group of columns has become, as stored."""
        params, field = self._given.plan.scales, self._applied
        assert field is not None
        codec = codec_of(params)
        each = params.model_copy(update={"per": "row"})
        reach = codec_of(self._given.plan.quantizer).reach(self._given.plan.quantizer)
        sections: Sections = codec.encode(each, targets, reach=reach, stretch=stretch)
        shape = (targets.shape[0], targets.shape[1])
        found: ScaleField = codec.decoder(each, shape, sections, field.scale.dtype)
        scale, zero = found.scale[:, None], None if found.zero is None else found.zero[:, None]
        if rows is None:
            return scale, zero
        index = column // params.grouped(self._given.shape[1])
        field.scale.view(self._given.shape[0], -1)[rows, index] = found.scale
        if field.zero is not None and found.zero is not None:
            field.zero.view(self._given.shape[0], -1)[rows, index] = found.zero
        self._rescaled = True
        return scale, zero

    @property
    def sections(self) -> Sections:
        """Sections of the order and of the scales that were applied last."""
        if self._rescaled:
            params = self._given.plan.scales
            self._scales = codec_of(params).sections(params, self._applied)
            self._rescaled = False
        return {**self._ordered, **self._scales}

    def scaled(self, stretch: float = 1.0) -> Latent:
        """The latent with its scales; one tensor, normalized anew by each call."""
        plan, latent = self._given.plan, self._latent
        if self._applied is not None:
            self._applied.restore_(latent, 0)
        codec = codec_of(plan.scales)
        reach = codec_of(plan.quantizer).reach(plan.quantizer)
        if plan.scales.searched and self._clip is None:
            self._clip = self._best_clip()
        self._scales = codec.encode(
            plan.scales, latent, reach=reach, stretch=stretch, clip=self._clip
        )
        self._applied = self._field(self._scales)
        return self._normalized(latent, self._applied)

    def _field(self, sections: Sections) -> ScaleField | None:
        plan, dtype = self._given.plan, self._latent.dtype
        codec = codec_of(plan.scales)
        field: ScaleField | None = codec.decoder(plan.scales, self._given.shape, sections, dtype)
        return field

    def _normalized(self, latent: Tensor, field: ScaleField | None) -> Latent:
        """The latent with scales, in its own memory."""
        return Latent(
            values=latent if field is None else field.normalize_(latent),
            scales=field,
            range=self._given.plan.scales.range,
            source_dtype=self._given.source_dtype,
            generator=self._given.generator,
            quantizer=self._given.plan.quantizer,
        )

    def _best_clip(self) -> Tensor:
        """The share of its largest weight to which the levels of each group reach, [groups]."""
        plan, moments = self._given.plan, self._given.moments
        codec, quantizer = codec_of(plan.scales), codec_of(plan.quantizer)
        reach = quantizer.reach(plan.quantizer)

        def coded(shares: Tensor) -> Tensor:
            sections = codec.encode(plan.scales, self._latent, reach=reach, clip=shares)
            field = self._field(sections)
            assert field is not None
            latent = self._normalized(self._latent.clone(), field)
            coder = quantizer.coder(plan.quantizer, latent, {})
            _, decoded = coder.quantize(latent.values, slice(0, self._given.shape[1]))
            return field.restore_(decoded, 0)

        bands = None
        if plan.scales.needs_statistics:
            assert moments is not None
            bands = partial(self._grams, moments.inputs)
        scales: Any = plan.scales  # one of the kinds that are searched
        return best_clip(scales, self._latent, coded, bands)

    def _grams(self, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of one order of the columns, and the Gram matrix of the inputs in that order."""
        first: int | None = 0
        while first is not None:
            columns, last = (None, None) if self.order is None else self.order.coded(first)
            ordered = inputs if columns is None else inputs[columns][:, columns]
            yield slice(first, last), ordered
            first = last

    def coder(self, latent: Latent, importance: Tensor | None = None) -> ColumnCoder:
        """A coder of a scaled latent; the first call learns the tables if there are none."""
        params = self._given.plan.quantizer
        codec = codec_of(params)
        if not self._tables:
            self._tables = self.learned = codec.fit(params, latent)
        coder: ColumnCoder = codec.coder(params, latent, self._tables, importance)
        return coder


def fit_tables(
    params: QuantizerStage,
    latents: Iterable[tuple[LatentCoder, Tensor]],
    count: int,
    generator: torch.Generator,
) -> Sections:
    """The common tables of several latents' quantizer, in their stored types; empty without any.

    Args:
        params: the quantizer.
        latents: coders of one group, each with its latent, which is used up.
        count: how many there are.
        generator: of the group.
    """
    # No frame in between holds a latent while the codec has it, or while the next one is made.
    tables: Sections = codec_of(params).fit_group(params, map(_prepared, latents), count, generator)
    return tables


def _prepared(member: tuple[LatentCoder, Tensor]) -> Latent:
    coder, latent = member
    return coder.prepare(latent)
