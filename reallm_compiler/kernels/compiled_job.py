"""What compiled kernels are called with: a job, filled with all that a matrix has (`llvm_text`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from reallm_compiler.kernels import threads
from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import SLOTS
from reallm_compiler.kernels.llvm_text_finish import Outputs
from reallm_compiler.kernels.llvm_text_numbers import EVENS
from reallm_compiler.kernels.llvm_text_prepare import Inputs
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.sides import Sides
from reallm_compiler.kernels.targets import TARGETS
from reallm_compiler.units import ceil_div

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""Types of activations, by their names in kernels."""

STORED = {**DTYPES, torch.int8: "i8"}
"""Types of factors."""

INDEX = {name: index for index, name in enumerate(SLOTS)}
"""Places of slots."""

Job = ctypes.c_int64 * len(SLOTS)


class MatrixJob:
    """The job of a packed matrix [p, q], ready but for activations and memory.

    Args:
        packed: the matrix, checked, on the CPU.
        form: of its codes.
        sides: what it does on both sides of them.
        dtype: type of activations.
        target: the processor (`jit.targets`).
        exact: activations have two sets of integers, else one.

    Attributes:
        packed, sides, dtype, target, exact: as given.
        form: with what the sides say of orders.
        inputs, outputs: what is done to activations and results.
        rank: of the factors, filled up; 0 without.
        stride: numbers of a token's inputs, filled up.
        y_stride: numbers of a token's results, filled up.
        row_blocks: blocks of a row that have scales.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        form: Form,
        sides: Sides,
        dtype: torch.dtype,
        target: str,
        *,
        exact: bool,
    ) -> None:
        form = replace(form, orders=sides.group_orders is not None)
        self.packed = packed
        self.form = form
        self.sides = sides
        self.dtype = dtype
        self.target = target
        self.exact = exact
        self.rank = 0 if sides.factors is None else up(sides.factors.left.shape[1], LANES)
        self.stride = form.padded_columns(packed.shape)
        rows = form.lines(packed.shape) * form.line_rows
        self.y_stride = up(max(packed.shape[0], rows), LANES)
        self.row_blocks = 0 if form.blocks is None else packed.shape[1] // form.blocks.block
        self.inputs = Inputs(
            dtype=DTYPES[dtype],
            factors=sides.inputs.before is not None,
            block=sides.inputs.block,
            ordered=sides.order is not None,
            order_factors=sides.order_factors is not None,
            planes=TARGETS[target].planes(form),
            evens=TARGETS[target].evens(form) and not form.orders,
            sums=0 if form.blocks is None or form.orders else form.blocks.block,
            kept=sides.factors is not None,
            exact=exact,
        )
        self.outputs = Outputs(
            dtype=DTYPES[dtype],
            factors=sides.outputs.before is not None,
            block=sides.outputs.block,
            low_rank=None if sides.factors is None else STORED[sides.factors.left.dtype],
            low_rank_scales=sides.factors is not None and sides.factors.scales is not None,
            gain=sides.gain is not None,
            exact=exact,
        )
        self._tensors: list[Tensor] = []  # whose memory the job points to
        self._template = Job()
        self._fill()

    @property
    def address(self) -> int:
        """Of the job that has nothing but the matrix."""
        return ctypes.addressof(self._template)

    def copy(self, **values: Tensor | int | None) -> ctypes.Array[ctypes.c_int64]:
        """A job with other values in some slots; tensors are not kept."""
        job = Job.from_buffer_copy(self._template)
        for name, value in values.items():
            job[INDEX[name]] = value.data_ptr() if isinstance(value, Tensor) else value or 0
        return job

    def call(self, function: Callable[[int], object], **values: Tensor | int | None) -> None:
        """Calls a function of a kernel with such a copy."""
        job = self.copy(**values)
        function(ctypes.addressof(job))

    def _fill(self) -> None:
        """What all jobs have in common."""
        packed, form, sides = self.packed, self.form, self.sides
        p, q = packed.shape
        codes = packed.sections[form.codes.section]
        lines = form.lines(packed.shape)
        self._set(
            columns=q,
            rows=p,
            rows_up=up(p, LANES),
            lines=lines,
            line_bytes=codes.numel() // lines,
            line_codes=form.padded_codes(packed.shape),
            periods=form.padded_codes(packed.shape) // form.period,
            plane_stride=self.stride,
            y_stride=self.y_stride,
            row_blocks=self.row_blocks,
            rank=self.rank,
            codes=codes,
            tables=TARGETS[self.target].tables(form, sides.values),
            row_scales=padded(sides.row_scales, self.y_stride),
            row_shifts=padded(sides.row_shifts, self.y_stride),
            in_factors=sides.inputs.before,
            group_orders=self._group_orders(),
            group_lines=sides.group_lines,
            order=sides.order,
            order_factors=sides.order_factors,
            out_factors=padded(sides.outputs.before, self.y_stride),
            gain=padded(sides.gain, self.y_stride),
        )
        if sides.factors is not None:
            missing = self.rank - sides.factors.left.shape[1]
            self._set(
                l1=pad(sides.factors.left, (0, missing)) if missing else sides.factors.left,
                l2=pad(sides.factors.right, (0, 0, 0, missing)) if missing else sides.factors.right,
                rank_scales=padded(sides.factors.scales, self.rank),
            )
        if form.blocks is not None:
            values, target = sides.values, TARGETS[self.target]
            bias, unit = target.bias(form), target.unit(form)
            sections = packed.sections
            shift = values.shift - form.blocks.zero - values.unit * bias
            self._set(
                numbers=torch.tensor([values.unit * unit, shift]),
                block_scales=sections["scales"],
                block_supers=sections.get("scales_super"),
                block_offset=sections.get("scales_offset"),
                block_zeros=sections.get("zeros"),
                zero_supers=sections.get("zeros_super"),
                zero_offset=sections.get("zeros_offset"),
            )
        found = threads.openmp()
        if found is not None:
            self._set(parallel=found[0], thread_number=found[1], thread_count=found[2])

    def _group_orders(self) -> Tensor | None:
        """Orders of groups, in which integers come as kernels want them."""
        orders = self.sides.group_orders
        if orders is None or not TARGETS[self.target].evens(self.form):
            return orders
        return orders.view(len(orders), -1, STEP)[:, :, EVENS].reshape(orders.shape)

    def _set(self, **values: Tensor | int | None) -> None:
        """Fills slots; tensors stay as long as the product."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                kept = value.contiguous()
                self._tensors.append(kept)
                self._template[INDEX[name]] = kept.data_ptr()
            elif value is not None:
                self._template[INDEX[name]] = value


def up(count: int, step: int) -> int:
    """The next multiple of a step."""
    return ceil_div(count, step) * step


def padded(values: Tensor | None, count: int) -> Tensor | None:
    """float32 [count]: values and zeros."""
    return None if values is None else pad(values.to(torch.float32), (0, count - len(values)))
