"""Products of many tokens: panels of rows are decoded to numbers once and multiplied by torch.

Gradients take the same way back: what is done to outputs is done to them first, as to inputs, and
what is done to inputs last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from reallm_compiler.kernels import jit, threads
from reallm_compiler.kernels.compiled_job import MatrixJob, padded, up
from reallm_compiler.kernels.form import LANES
from reallm_compiler.kernels.llvm_text_call import LINES
from reallm_compiler.kernels.llvm_text_panel import number_type
from reallm_compiler.kernels.memory import own_tensors
from reallm_compiler.kernels.sides import times
from reallm_compiler.units import ceil_div

PANEL_BYTES = 1 << 23
"""Bytes of the rows that are decoded at once, about."""


class ManyTokens:
    """Products with one packed matrix [p, q] whose lines have one order of columns.

    Args:
        matrix: its job.
    """

    def __init__(self, matrix: MatrixJob) -> None:
        self._matrix = matrix
        wide = matrix.dtype == torch.bfloat16
        self._numbers = torch.bfloat16 if wide else torch.float32  # the type of panels
        self._shifted = bool(matrix.sides.row_shifts.any())

    @cached_property
    def _forth(self) -> jit.Panel:
        """Factors are multiplied by torch, and gains after them."""
        matrix, outputs = self._matrix, self._matrix.outputs
        outputs = replace(
            outputs,
            low_rank=None,
            low_rank_scales=False,
            gain=outputs.low_rank is None and outputs.gain,
            exact=False,
            products=number_type(matrix.inputs),
            shifted=self._shifted,
        )
        inputs = replace(matrix.inputs, kept=False)
        kernel = jit.Kernel(form=matrix.form, inputs=inputs, outputs=outputs, work="panel")
        return jit.panel(kernel, matrix.target)

    @cached_property
    def _back(self) -> jit.Panel:
        """Inputs take the part of outputs, and outputs that of inputs."""
        matrix = self._matrix
        inputs = replace(
            matrix.inputs,
            factors=matrix.outputs.factors or matrix.outputs.gain,
            block=matrix.outputs.block,
            ordered=False,
            order_factors=False,
            sums=0,
            kept=False,
            exact=False,
        )
        outputs = replace(
            matrix.outputs,
            factors=matrix.inputs.factors,
            block=matrix.inputs.block,
            low_rank=None,
            low_rank_scales=False,
            gain=False,
            exact=False,
        )
        kernel = jit.Kernel(form=matrix.form, inputs=inputs, outputs=outputs, work="panel")
        return jit.panel(kernel, matrix.target)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        matrix, tokens, rows = self._matrix, len(x), self._rows
        kernel, sides, numbers = self._forth, matrix.sides, self._numbers
        out = torch.empty(tokens, matrix.packed.shape[0], dtype=matrix.dtype)
        panel, inputs, products, memory, ordered = own_tensors(
            (rows, matrix.stride, numbers),
            (tokens, matrix.stride, numbers),
            (tokens, matrix.y_stride, numbers),
            (1, max(x.shape[1], matrix.stride, matrix.y_stride) + LANES, torch.float32),
            (1, matrix.stride, torch.float32),
        )
        matrix.call(kernel.mixed, tokens=tokens, x=x, mixed=memory, ordered=ordered, high=inputs)
        for span, decoded in self._decoded(kernel, panel):
            torch.mm(inputs, decoded.t(), out=products[:, span])
        ones = inputs.sum(1, dtype=torch.float32) if self._shifted else None
        matrix.call(kernel.finish, tokens=tokens, y=products, mixed=memory, scales=ones, out=out)
        return out if sides.factors is None else self._with_factors(x, out)

    def _with_factors(self, x: Tensor, y: Tensor) -> Tensor:
        """g (y + L1 L2 x)."""
        sides, numbers = self._matrix.sides, self._numbers
        factors = sides.factors
        assert factors is not None
        inner = x.to(numbers) @ factors.right.to(numbers).t()
        if factors.scales is not None:
            inner = inner * factors.scales.to(numbers)
        y = torch.addmm(y.to(numbers), inner, factors.left.to(numbers).t())
        return (y if sides.gain is None else y * sides.gain.to(numbers)).to(self._matrix.dtype)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        matrix, tokens, numbers = self._matrix, len(x), self._numbers
        kernel, sides, (p, q) = self._back, matrix.sides, matrix.packed.shape
        out = torch.empty(tokens, q, dtype=matrix.dtype)
        panel, inputs, memory = own_tensors(
            (self._rows, matrix.stride, numbers),
            (tokens, matrix.y_stride, numbers),
            (1, matrix.y_stride + LANES, torch.float32),
        )
        given = pad(x, (0, up(p, LANES) - p)) if p % LANES else x
        matrix.call(
            kernel.mixed,
            tokens=tokens,
            columns=given.shape[1],
            plane_stride=matrix.y_stride,
            x=given,
            mixed=memory,
            high=inputs,
            in_factors=padded(times(sides.outputs.before, sides.gain), matrix.y_stride),
        )
        results = torch.zeros(tokens, matrix.stride)
        scaled = inputs[:, : len(sides.row_scales)] * sides.row_scales.to(numbers)
        for span, decoded in self._decoded(kernel, panel):
            results += scaled[:, span] @ decoded
        if self._shifted:
            ones = inputs[:, : len(sides.row_shifts)].float() @ sides.row_shifts
            results += ones[:, None]
        results = self._in_place(results)
        matrix.call(
            kernel.finish,
            tokens=tokens,
            rows=q,
            rows_up=q,
            y_stride=q,
            y=results,
            out=out,
            out_factors=sides.inputs.before,
        )
        if sides.factors is None:
            return out
        x = x if sides.gain is None else x * sides.gain.to(x.dtype)
        inner = x.to(numbers) @ sides.factors.left.to(numbers)
        if sides.factors.scales is not None:
            inner = inner * sides.factors.scales.to(numbers)
        return torch.addmm(out.to(numbers), inner, sides.factors.right.to(numbers)).to(out.dtype)

    def _in_place(self, results: Tensor) -> Tensor:
        """float32 [n, q], contiguous: numbers at the positions of inputs back at their columns."""
        sides, q = self._matrix.sides, self._matrix.packed.shape[1]
        if sides.order_factors is not None:
            results = results * sides.order_factors
        if sides.order is None:
            return results[:, :q].contiguous()
        positions = torch.empty(q + 1, dtype=torch.int64)
        positions[sides.order.long()] = torch.arange(len(sides.order))
        return results.index_select(1, positions[:q])

    @property
    def _rows(self) -> int:
        """Rows of a panel."""
        form, shape = self._matrix.form, self._matrix.packed.shape
        each = form.line_rows * self._matrix.stride * self._numbers.itemsize
        step = up(max(1, PANEL_BYTES // each), LINES)
        return min(step, form.lines(shape)) * form.line_rows

    def _decoded(self, kernel: jit.Panel, panel: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their entries [rows, stride]) of all rows, in the memory of `panel`."""
        matrix, form, each = self._matrix, self._matrix.form, panel.stride(0) * panel.itemsize
        lines, step = form.lines(matrix.packed.shape), len(panel) // form.line_rows
        for first in range(0, lines, step):
            count = min(step, lines - first)

            def decode(a: int, b: int, first: int = first) -> None:
                start = panel.data_ptr() + a * form.line_rows * each
                kernel.decode(matrix.address, first + a, first + b, start)

            shares = min(torch.get_num_threads(), ceil_div(count, LINES))
            threads.run_shares(decode, count, shares, LINES)
            rows = slice(first * form.line_rows, (first + count) * form.line_rows)
            yield rows, panel[: count * form.line_rows]
