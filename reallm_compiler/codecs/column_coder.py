"""Codes of a latent, column by column: what a coder does, and how errors are carried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.sections import Sections


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFeedback:
    """How errors of a row's columns move the targets of its later columns, in the coded order.

    target_t = w_t + sum_{s<t} U[s, t] (w_s - v_s), and an error of that target costs D_t times its
    square; the costs of a row e add up to e H e^T for H = U diag(D) U^T.

    Attributes:
        upper: float32 [q, q], the strictly upper triangle of U; where a coder takes `step` columns
            at once, zero within them too.
        importance: float32 [q], D.
        scales: float32 [n, q] or [1, q], what normalized values are multiplied by before errors
            are compared.
        zeros: of the same shape, what is added to them then; None for zeros.
        rescale: (targets [n, m] of the columns of a group, first column) -> scales and zeros, each
            [n, 1] (None for zeros), for these columns; None where scales stay as they are.
        group: columns of a group, whose scales in a row are equal.
    """

    upper: Tensor
    importance: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    rescale: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] | None = None
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
        """Codes of a block [n, m] of normalized values, given the columns that were coded before.

        Args:
            block: values for the columns, which may differ from the latent's own.
            columns: first and last of them in the coded order; the first is where the last block
                of these rows ended.
            rows: first and last row of the block; all rows by default.
            decode: whether the decoded values are wanted.

        Returns:
            the codes, in the quantizer's own form, and the decoded normalized values [n, m].
        """
        raise NotImplementedError

    def nearest(self, block: Tensor, columns: slice, *, rows: slice = slice(None)) -> Tensor:
        """What a block decodes to, a fresh tensor; its codes are not kept, or overwritten later."""
        _, decoded = self.quantize(block, columns, rows=rows)
        assert decoded is not None
        return decoded

    @torch.inference_mode()  # a fifth faster: the time goes into many small steps
    def quantize_rows(self, values: Tensor, rows: slice, feedback: RowFeedback) -> Tensor:
        """Codes whole rows with the errors of earlier columns carried into later ones.

        Args:
            values: float32 [n, q], normalized, in the coded order.
            rows: first and last of them.
            feedback: how errors are carried.

        Returns:
            the decoded values [n, q], scaled.
        """
        columns, upper, step = values.shape[1], feedback.upper, self.step
        scales, zeros, rescale = feedback.scales, feedback.zeros, feedback.rescale
        # Less the zeros: where scales are chosen anew, once a group's turn has come.
        wanted = _by_columns(values * scales)
        if rescale is not None and zeros is not None:
            wanted += zeros
            zeros = zeros.clone()
        targets, decoded = wanted.clone(), torch.empty_like(wanted)
        block = min(max(LAZY // step, 1) * step, columns)
        errors = values.new_zeros(block, len(values)).t()
        # Views [n, step] of all steps at once: making them one by one costs as much as the work.
        whole = (targets, wanted, decoded, _by_columns(upper), errors)
        by_step = [torch.split(each, step, dim=1) for each in whole]
        scale = divisor = scales
        for first in range(0, columns, block):
            last = min(first + block, columns)
            for column in range(first, last, step):
                span = slice(column, min(column + step, last))
                index = column // step
                target, original, value, carry = (views[index] for views in by_step[:4])
                error = by_step[4][index - first // step][:, : original.shape[1]]
                before = errors[:, : column - first]
                if rescale is None:
                    scale = scales[:, span]
                    divisor = torch.where(scale > 0, scale, torch.inf)
                elif column % feedback.group == 0:
                    stop = column + feedback.group
                    group = targets[:, column:stop].contiguous()
                    inner = min(stop, last)
                    group[:, : inner - column] += before @ upper[first:column, column:inner]
                    scale, zero = rescale(group, column)
                    divisor = torch.where(scale > 0, scale, torch.inf)
                    if zeros is not None and zero is not None:
                        zeros[:, column:stop] = zero
                        targets[:, column:stop] -= zero
                        wanted[:, column:stop] -= zero
                if column > first:
                    target = torch.addmm(target, before, carry[first:column])
                _, level = self.quantize(target / divisor, span, rows=rows)
                assert level is not None
                torch.mul(level, scale, out=value)
                torch.sub(original, value, out=error)
            targets[:, last:].addmm_(errors[:, : last - first], upper[first:last, last:])
        return decoded if zeros is None else decoded.add_(zeros)

    def improve(
        self, values: Tensor, scales: Tensor, root: Tensor, columns: slice, rows: slice
    ) -> Tensor:
        """Code `step` columns again for other values, where that costs less than their old codes.

        This one is for single columns, each of whose codes is the nearest one.

        Args:
            values: [n, m], normalized.
            scales: [n, m] or [1, m], what errors of normalized values are multiplied by.
            root: C [m, m], lower triangular: an error e of a row costs |e C|^2.
            columns: first and last of them in the coded order.
            rows: first and last row.

        Returns:
            the decoded normalized values [n, m].
        """
        _, decoded = self.quantize(values, columns, rows=rows)
        assert decoded is not None
        return decoded

    def sections(self) -> Sections:
        """Sections of the codes, once every column of every row was coded."""
        raise NotImplementedError
