"""Products with a packed matrix by torch alone: every kind of every stage, by panels of rows.

    y = g * (B T(W) A (c x) + R c x + L1 L2 x),   A and B what the transforms do to in- and outputs

T(W) comes from the codecs' own decoder, some rows at a time, and is never whole. A transform that
does not act on rows and columns separately is undone on each panel instead. Arithmetic is float32,
and float64 for activations or checkpoints of float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from reallm_compiler.codecs.decode import MatrixDecoder, residual_terms, work_dtype
from reallm_compiler.errors import CodecError
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.stages import ResidualStage
from reallm_compiler.units import ceil_div

KEPT = 32
"""A decoder is kept between calls if its own numbers take at most one in so many of the bytes of
the matrix: scales and orders that were read once may be larger than what is stored."""


def add_residuals(
    packed: PackedMatrix, stages: Iterable[ResidualStage], x: Tensor, y: Tensor
) -> None:
    """x R^T of some residuals of a matrix [p, q], for x [n, q], added to `y` [n, p] in place.

    Residuals without factors see the columns times their gains.
    """
    gain = packed.sections.get("column_gain")
    for term in residual_terms(stages, packed.shape, packed.sections, x.dtype):
        scaled = gain is not None and term.factors is None
        term.add_product_(x * gain.to(x.dtype) if gain is not None and scaled else x, y)


class PlainProduct:
    """Products with one packed matrix [p, q] (`choose.Product`).

    Args:
        packed: the matrix, checked.
        dtype: type of activations.
    """

    def __init__(self, packed: PackedMatrix, dtype: torch.dtype) -> None:
        self._packed = packed
        self._dtype = dtype
        self._work = torch.promote_types(
            work_dtype(packed.layout.source_dtype),
            torch.float64 if dtype == torch.float64 else torch.float32,
        )
        terms = ("scales", "permutation", "decoder")
        numbers = sum(
            packed.sections[spec.role].numel() for spec in packed.form.specs if spec.term in terms
        )
        self._kept: MatrixDecoder | None = None
        if 8 * numbers * KEPT <= packed.nbytes:
            self._kept = self._new_decoder(coded_only=True)

    @property
    def _coded(self) -> MatrixDecoder:
        """Decodes the coded part alone."""
        return self._kept or self._new_decoder(coded_only=True)

    def _new_decoder(self, *, coded_only: bool) -> MatrixDecoder:
        packed = self._packed
        return MatrixDecoder(packed.layout, packed.sections, self._work, coded_only=coded_only)

    @cached_property
    def _apart(self) -> bool:
        """Whether all transforms act on inputs and outputs separately."""
        (p, q), device = self._packed.shape, self._packed.device
        try:
            for transform in self._coded.transforms:
                transform.inputs(torch.zeros(1, q, dtype=self._work, device=device))
                transform.outputs(torch.zeros(1, p, dtype=self._work, device=device))
        except CodecError:
            return False
        return True

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        packed, sections = self._packed, self._packed.sections
        coded, x = self._coded, x.to(self._work)
        y = x.new_empty(len(x), packed.shape[0])
        inputs = x
        if "column_gain" in sections:
            inputs = x * sections["column_gain"].to(self._work)
        if self._apart:
            for transform in reversed(coded.transforms):
                inputs = transform.inputs(inputs)
        for first, last in coded.panels():
            read = coded.transformed_rows if self._apart else coded.rows
            torch.mm(inputs, read(first, last).t(), out=y[:, first:last])
        if self._apart:
            for transform in coded.transforms:
                y = transform.outputs(y)
        add_residuals(packed, packed.plan.residual, x, y)
        if "gain" in sections:
            y *= sections["gain"].to(self._work)
        return y.to(self._dtype)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        whole, x = self._new_decoder(coded_only=False), x.to(self._work)
        y = x.new_zeros(len(x), self._packed.shape[1])
        for first, last in whole.panels():
            y.addmm_(x[:, first:last], whole.rows(first, last))
        return y.to(self._dtype)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        p, q = self._packed.shape
        whole = self._new_decoder(coded_only=False)
        if isinstance(rows, range):
            return self._range(whole, rows)
        wanted, places = torch.unique(rows, return_inverse=True)
        blocks, inside = torch.unique(wanted // whole.step, return_inverse=True)
        decoded = torch.empty(
            len(blocks), whole.step, q, dtype=self._dtype, device=self._packed.device
        )
        for index, block in enumerate(blocks.tolist()):
            first = block * whole.step
            last = min(first + whole.step, p)
            whole.fill(decoded[index, : last - first], first)
        return decoded[inside, wanted % whole.step][places]

    def _range(self, whole: MatrixDecoder, rows: range) -> Tensor:
        """Rows of a range; a decoder's own ranges begin at multiples of its step."""
        p, q = self._packed.shape
        result = torch.empty(len(rows), q, dtype=self._dtype, device=self._packed.device)
        start = rows.start - rows.start % whole.step
        stop = min(ceil_div(rows.stop, whole.step) * whole.step, p)
        for first, last in whole.panels():
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            begin, end = max(low, rows.start), min(high, rows.stop)
            out = result[begin - rows.start : end - rows.start]
            if (begin, end) == (low, high):
                whole.fill(out, low)
            else:
                decoded = torch.empty(high - low, q, dtype=self._dtype, device=result.device)
                whole.fill(decoded, low)
                out.copy_(decoded[begin - low : end - low])
        return result
