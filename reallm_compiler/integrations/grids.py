"""A coded matrix in the terms of other tools: codes of single weights, levels, scales of groups.

Formats of other tools hold one code for each weight and scales of groups of weights that follow
each other. A matrix of a plan that says no more than that is a `Grid`: with its weights in one
line, row by row,

    W[i] = scale[i // group] levels[codes[i]] + offset[i // group]

and where the levels are integers, W = scale (codes - zero).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ColumnOrder
from reallm_compiler.codecs.latent import StagesDecoder
from reallm_compiler.codecs.quantizers.scalar import TableDecoder
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.stages import MatrixPlan, Stage, kind_name

BEFORE_CODES = ("residual", "transform", "autoencoder")
"""Stages that do something to a matrix that no other format knows, unless they are the default."""


class UnfitError(Exception):
    """A format cannot hold a matrix; its text is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A matrix [p, q] of single codes.

    Attributes:
        codes: uint8 [p, q], columns where they belong.
        bits: width of a code.
        levels: what codes stand for, float32 [2^bits].
        scale: float32 [groups].
        offset: float32 [groups]; None without any.
        group: consecutive weights that share a scale.
        dtype: type of the model's weights.
        columns: int64 [q], the columns in the order in which they make up groups; None for their
            own.
    """

    codes: Tensor
    bits: int
    levels: Tensor
    scale: Tensor
    offset: Tensor | None
    group: int
    dtype: torch.dtype
    columns: Tensor | None = None

    @property
    def integers(self) -> bool:
        """Whether the levels are 0, 1, 2, ..."""
        return torch.equal(self.levels, torch.arange(len(self.levels), dtype=torch.float32))

    def zeros(self) -> Tensor:
        """Integer zero points z of W = scale (codes - z), uint8 [groups].

        Groups of zeros have the middle code. For integer levels only.

        Raises:
            UnfitError: they are no integers in the range of the codes.
        """
        middle = 2 ** (self.bits - 1)
        if self.offset is None:
            return torch.zeros(self.scale.shape, dtype=torch.uint8)
        some = self.scale > 0
        found = torch.where(some, (-self.offset / self.scale).round(), float(middle))
        fits = (found >= 0) & (found < 2**self.bits) & (self.offset == -self.scale * found)
        if not bool((fits | ~some).all()):
            raise UnfitError("its zero points are no integers: use `affine` scales")
        return found.to(torch.uint8)

    def by_rows(self, values: Tensor) -> Tensor:
        """One of the values [groups] for each group, as [p, groups of a row].

        Raises:
            UnfitError: groups do not divide the rows.
        """
        self._check_rows()
        return values.view(len(self.codes), -1)

    def _check_rows(self) -> None:
        q = self.codes.shape[1]
        if q % self.group:
            raise UnfitError(f"groups of {self.group} weights do not divide its rows of {q}")

    def rows(self, order: Tensor) -> Grid:
        """The grid of the rows `order` [p].

        Raises:
            UnfitError: groups do not divide the rows.
        """
        offset = self.offset

        def taken(values: Tensor) -> Tensor:
            return self.by_rows(values)[order].reshape(-1)

        return replace(
            self,
            codes=self.codes[order],
            scale=taken(self.scale),
            offset=None if offset is None else taken(offset),
        )

    def groups(self) -> Tensor:
        """Which group of its row each column belongs to, int32 [q].

        Raises:
            UnfitError: groups do not divide the rows.
        """
        self._check_rows()
        found = torch.arange(self.codes.shape[1], dtype=torch.int32) // self.group
        if self.columns is None:
            return found
        return torch.empty_like(found).scatter_(0, self.columns, found)

    def wide(self, values: Tensor) -> Tensor:
        """One of the values [groups] for each weight, [p, q]."""
        if self.columns is not None:
            return self.by_rows(values)[:, self.groups().to(torch.int64)]
        spread = values.repeat_interleave(self.group)
        return spread[: self.codes.numel()].view(self.codes.shape)

    def check_order(self) -> None:
        """Refuse groups of columns that do not follow each other.

        Raises:
            UnfitError: they are such groups, and more than one in a row.
        """
        if self.columns is not None and self.group < self.codes.shape[1]:
            raise UnfitError("its groups are of columns in another order (`permutation`)")


def grid_of(archive: ModelArchive, matrix: PlannedMatrix) -> Grid:
    """What a matrix of an archive is made of.

    Raises:
        UnfitError: it is more than codes, levels and scales along its rows.
        FormatError: a section of it is damaged.
    """
    check_stages(matrix.plan)
    layout, sections = archive.coded_sections(matrix.name)
    latent = StagesDecoder(matrix.plan, layout.latent_shape, sections, torch.float32)
    table, field = latent.quantized, latent.field
    if not isinstance(table, TableDecoder):
        raise UnfitError(
            f"{named(matrix.plan, 'quantizer')} has no code of its own for each weight"
        )
    if field is None or field.per == "column":
        raise UnfitError(f"{named(matrix.plan, 'scales')} gives no scales to groups of a row")
    p, q = matrix.shape
    count = p if field.per == "tensor" else 1  # of each scale, as rows are groups then

    def flat(values: Tensor) -> Tensor:
        return values.reshape(-1).repeat(count).to(torch.float32)

    codes, columns = _in_place(table.codes(), latent.order, matrix.plan)
    return Grid(
        codes=codes,
        bits=table.bits,
        levels=table.levels.to(torch.float32),
        scale=flat(field.scale),
        offset=None if field.zero is None else flat(field.zero),
        group=field.block if field.per == "block" else q,
        dtype=TORCH_DTYPES[matrix.dtype],
        columns=columns,
    )


def _in_place(
    codes: Tensor, order: ColumnOrder | None, plan: MatrixPlan
) -> tuple[Tensor, Tensor | None]:
    """Codes with their columns where they belong, and the order in which they were coded."""
    if order is None:
        return codes, None
    columns, until = order.coded(0)
    if columns is None or until is not None or order.rows is not None:
        raise UnfitError(f"{named(plan, 'permutation')} gives rows orders of their own")
    index = columns.to(torch.int64)
    return torch.empty_like(codes).index_copy_(1, index, codes), index


def check_stages(plan: MatrixPlan) -> None:
    """Refuse a plan with a stage that no other format knows.

    Raises:
        UnfitError: names it.
    """
    for key in BEFORE_CODES:
        if getattr(plan, key) != MatrixPlan.model_fields[key].default:
            raise UnfitError(f"{named(plan, key)} is part of it")
    if plan.dora:
        raise UnfitError("gains of rows (`dora`) are part of it")


def named(plan: MatrixPlan, key: str) -> str:
    """A stage of a plan with its kinds, as `scales: rms`."""
    value = getattr(plan, key)
    stages: tuple[Stage, ...] = value if isinstance(value, tuple) else (value,)
    return f"`{key}: {', '.join(kind_name(type(stage)) for stage in stages)}`"
