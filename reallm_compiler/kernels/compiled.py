"""Products with packed codes by compiled kernels (`choose.Product`).

A few tokens meet the codes directly. For many, panels of rows are decoded to numbers once and
multiplied as ordinary matrices, which processors do faster from `MOST_TOKENS` on.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from reallm_compiler.kernels import jit, threads
from reallm_compiler.kernels.form import LANES, Form, form_for, form_of
from reallm_compiler.kernels.llvm_text import SLOTS
from reallm_compiler.kernels.llvm_text_call import LINES
from reallm_compiler.kernels.llvm_text_finish import Outputs
from reallm_compiler.kernels.llvm_text_prepare import Inputs
from reallm_compiler.kernels.memory import aligned, own_memory, own_tensors
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct, add_residuals
from reallm_compiler.kernels.sides import Sides, sides_of, times
from reallm_compiler.kernels.targets import TARGETS
from reallm_compiler.storage.windows import CodeWindows
from reallm_compiler.units import ceil_div

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""Types of activations, by their names in kernels."""

STORED = {**DTYPES, torch.int8: "i8"}
"""Types of factors."""

MOST_TOKENS = 12
"""Tokens up to which codes are read for the tokens themselves."""

PANEL_ROWS = 1024
"""Rows that are decoded at once."""

LEAST_FOR_THREADS = 1 << 17
"""Weights of a matrix that is worth a second thread."""

_INDEX = {name: index for index, name in enumerate(SLOTS)}
_Job = ctypes.c_int64 * len(SLOTS)


class _Own(threading.local):
    """A job of the calling thread, ready but for the activations."""

    job: ctypes.Array[ctypes.c_int64] | None = None
    tokens: int = 0
    size: int = 0
    first: int = 0


def compiled_product(
    packed: PackedMatrix, device: torch.device, dtype: torch.dtype
) -> CompiledProduct | SumProduct | None:
    """The product of a packed matrix by compiled kernels; None for what they do not do."""
    form = form_of(packed.plan, packed.shape)
    if form is None or dtype not in DTYPES:
        return None
    target = next((name for name in jit.targets() if TARGETS[name].fits(form)), None)
    return None if target is None else product_by(packed, form, dtype, target)


def product_by(
    packed: PackedMatrix, form: Form, dtype: torch.dtype, target: str
) -> CompiledProduct | SumProduct | None:
    """The product of a matrix by the kernels of a target that fits its form; None without sides."""
    sides = sides_of(packed, form)
    if sides is None:
        return None
    if len(sides) == 1 and not sides[0].beside:
        return CompiledProduct(packed, form, sides[0], dtype, target)
    return SumProduct(packed, form, sides, dtype, target)


class CompiledProduct:
    """Products with one packed matrix [p, q].

    Args:
        packed: the matrix, checked, on the CPU.
        form: of its codes.
        sides: what it does on both sides of them.
        dtype: type of activations.
        target: the processor (`jit.targets`).
        exact: activations have two sets of integers, else one; as float32 needs it by default.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        form: Form,
        sides: Sides,
        dtype: torch.dtype,
        target: str,
        *,
        exact: bool | None = None,
    ) -> None:
        self._exact = dtype == torch.float32 if exact is None else exact
        form = replace(form, orders=sides.group_orders is not None)
        self._packed = packed
        self._form = form
        self._dtype = dtype
        self._target = target
        self._rank = 0 if sides.factors is None else _up(sides.factors.left.shape[1], LANES)
        self._stride = form.padded_columns(packed.shape)
        rows = form.lines(packed.shape) * form.line_rows
        self._y_stride = _up(max(packed.shape[0], rows), LANES)
        self._row_blocks = 0 if form.blocks is None else packed.shape[1] // form.blocks.block
        self._inputs = Inputs(
            dtype=DTYPES[dtype],
            factors=sides.inputs.before is not None,
            block=sides.inputs.block,
            ordered=sides.order is not None,
            order_factors=sides.order_factors is not None,
            planes=TARGETS[target].planes(form),
            sums=0 if form.blocks is None or form.orders else form.blocks.block,
            kept=sides.factors is not None,
            exact=self._exact,
        )
        self._outputs = Outputs(
            dtype=DTYPES[dtype],
            factors=sides.outputs.before is not None,
            block=sides.outputs.block,
            low_rank=None if sides.factors is None else STORED[sides.factors.left.dtype],
            low_rank_scales=sides.factors is not None and sides.factors.scales is not None,
            gain=sides.gain is not None,
            exact=self._exact,
        )
        self._row_scales, self._row_shifts = sides.row_scales, sides.row_shifts
        self._shifted = bool(sides.row_shifts.any())
        self._factors, self._gain = sides.factors, sides.gain
        self._order = None if sides.order is None else sides.order.to(torch.int32)
        self._order_factors, self._in_factors = sides.order_factors, sides.inputs.before
        self._out_factors = times(sides.outputs.before, sides.gain)
        self._tensors: list[Tensor] = []  # whose memory the job points to
        self._template = _Job()
        self._fill_template(sides)
        self._own = _Own()

    @cached_property
    def _plain(self) -> PlainProduct:
        return PlainProduct(self._packed, self._dtype)

    @cached_property
    def _one(self) -> jit.Direct:
        return jit.direct(self._kernel("one"), self._target)

    @cached_property
    def _several(self) -> jit.Direct:
        return jit.direct(self._kernel("several"), self._target)

    @cached_property
    def _panel(self) -> jit.Panel:
        return jit.panel(self._kernel("panel"), self._target)

    @cached_property
    def _back(self) -> jit.Panel:
        """For gradients: inputs take the part of outputs, and outputs that of inputs."""
        inputs = replace(
            self._inputs,
            factors=self._outputs.factors or self._outputs.gain,
            block=self._outputs.block,
            ordered=False,
            order_factors=False,
            sums=0,
            kept=False,
            exact=False,
        )
        outputs = Outputs(
            dtype=self._inputs.dtype,
            factors=self._inputs.factors,
            block=self._inputs.block,
            low_rank=None,
            low_rank_scales=False,
            gain=False,
            exact=False,
        )
        work: Literal["panel"] = "panel"
        kernel = jit.Kernel(form=self._form, inputs=inputs, outputs=outputs, work=work)
        return jit.panel(kernel, self._target)

    def _kernel(self, work: Literal["one", "several", "panel"]) -> jit.Kernel:
        inputs, outputs = self._inputs, self._outputs
        if work == "panel":  # factors are multiplied by torch there, and gains after them
            own = outputs.low_rank is None
            outputs = replace(
                outputs,
                low_rank=None,
                low_rank_scales=False,
                gain=own and outputs.gain,
                exact=False,
            )
            inputs = replace(inputs, kept=False)
        return jit.Kernel(form=self._form, inputs=inputs, outputs=outputs, work=work)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        if not len(x):
            return x.new_empty(0, self._packed.shape[0])
        if len(x) <= MOST_TOKENS:
            return self._direct(x)
        # Where rows have orders of their own, panels have no order in common with the inputs.
        return self._plain.linear(x) if self._form.orders else self._panels(x)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        if not len(x):
            return x.new_empty(0, self._packed.shape[1])
        return self._plain.transposed(x) if self._form.orders else self._panels_transposed(x)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        return self._plain.rows(rows)

    # ---- few tokens

    def _direct(self, x: Tensor) -> Tensor:
        tokens = len(x)
        kernel = self._several if tokens > 1 else self._one
        y = torch.empty(tokens, self._packed.shape[0], dtype=self._dtype)
        job = self._job(tokens)
        count = torch.get_num_threads() if self._packed.layout.numel >= LEAST_FOR_THREADS else 1
        job[_INDEX["x"]] = x.data_ptr()
        job[_INDEX["out"]] = y.data_ptr()
        job[_INDEX["threads"]] = count
        address = ctypes.addressof(job)
        if count == 1 or threads.openmp() is not None:
            kernel.linear(address)
            return y
        kernel.prepare(address)
        kernel.inner(address)
        lines = self._form.lines(self._packed.shape)
        threads.run_shares(lambda a, b: kernel.sums(address, a, b), lines, count, LINES)
        kernel.finish(address)
        return y

    def _job(self, tokens: int) -> ctypes.Array[ctypes.c_int64]:
        """A job of the calling thread for so many tokens."""
        own = self._own
        if own.job is not None and own.tokens == tokens and own.first == own_memory(own.size):
            return own.job
        parts = self._parts(tokens)
        own.tokens, own.size = tokens, sum(parts.values())
        own.first = place = own_memory(own.size)
        own.job = _Job.from_buffer_copy(self._template)
        own.job[_INDEX["tokens"]] = tokens
        own.job[_INDEX["integers"]] = self._sets(tokens)
        for name, size in parts.items():
            own.job[_INDEX[name]] = place
            place += size
        return own.job

    def _sets(self, tokens: int) -> int:
        """Sets of integers of so many tokens."""
        return 2 * tokens if self._exact else tokens

    def _parts(self, tokens: int) -> dict[str, int]:
        """Bytes of the parts of a job's memory."""
        q, sets = self._packed.shape[1], self._sets(tokens)
        sizes = {
            "kept": 4 * tokens * q if self._rank else 0,
            "mixed": 4 * (max(q, self._stride) + LANES),
            "ordered": 4 * self._stride if self._inputs.ordered else 0,
            "high": sets * self._stride * (1 if self._inputs.planes else 2),
            "low": sets * self._stride if self._inputs.planes else 0,
            "scales": 4 * sets,
            "totals": 8 * sets,
            "block_sums": 4 * sets * _up(self._row_blocks, LANES),
            "inner": 4 * tokens * self._rank,
            "y": 4 * sets * self._y_stride,
        }
        return {name: aligned(size) for name, size in sizes.items()}

    # ---- many tokens

    def _panels(self, x: Tensor) -> Tensor:
        kernel, form, tokens = self._panel, self._form, len(x)
        p, lines = self._packed.shape[0], form.lines(self._packed.shape)
        numbers = self._numbers
        out = torch.empty(tokens, p, dtype=self._dtype)
        step = max(1, PANEL_ROWS // form.line_rows)
        panel, inputs, products, results, memory, ordered = own_tensors(
            (min(step, lines) * form.line_rows, self._stride, numbers),
            (tokens, self._stride, numbers),
            (tokens, min(step, lines) * form.line_rows, numbers),
            (tokens, self._y_stride, torch.float32),
            (1, max(x.shape[1], self._stride) + LANES, torch.float32),
            (1, self._stride, torch.float32),
        )
        job = _Job.from_buffer_copy(self._template)
        parts = {"x": x, "out": out, "mixed": memory, "ordered": ordered}
        for name, tensor in {**parts, "high": inputs, "y": results}.items():
            job[_INDEX[name]] = tensor.data_ptr()
        job[_INDEX["tokens"]] = tokens
        address = ctypes.addressof(job)
        kernel.mixed(address)
        for rows, decoded in self._decoded(kernel, panel):
            found = products.view(-1)[: tokens * len(decoded)].view(tokens, len(decoded))
            torch.mm(inputs, decoded.t(), out=found)
            torch.mul(found, self._row_scales[rows], out=results[:, rows])
        if self._shifted:
            ones = inputs.sum(1, dtype=torch.float32)
            results[:, : len(self._row_shifts)] += ones[:, None] * self._row_shifts
        kernel.finish(address)
        return out if self._factors is None else self._with_factors(x, out, numbers)

    @property
    def _numbers(self) -> torch.dtype:
        """The type of panels."""
        return torch.bfloat16 if self._dtype == torch.bfloat16 else torch.float32

    def _decoded(self, kernel: jit.Panel, panel: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their entries [rows, stride]) of all rows, in the memory of `panel`."""
        form, each = self._form, panel.stride(0) * panel.itemsize
        lines, step = form.lines(self._packed.shape), len(panel) // form.line_rows
        job = ctypes.addressof(self._template)
        for first in range(0, lines, step):
            count = min(step, lines - first)

            def decode(a: int, b: int, first: int = first) -> None:
                start = panel.data_ptr() + a * form.line_rows * each
                kernel.decode(job, first + a, first + b, start)

            shares = min(torch.get_num_threads(), ceil_div(count, LINES))
            threads.run_shares(decode, count, shares, LINES)
            rows = slice(first * form.line_rows, (first + count) * form.line_rows)
            yield rows, panel[: count * form.line_rows]

    def _panels_transposed(self, x: Tensor) -> Tensor:
        """Gradients go the way of activations back: what is done to outputs comes first."""
        kernel, form, tokens = self._back, self._form, len(x)
        (p, q), numbers = self._packed.shape, self._numbers
        step = max(1, PANEL_ROWS // form.line_rows)
        rows = min(step, form.lines(self._packed.shape)) * form.line_rows
        out = torch.empty(tokens, q, dtype=self._dtype)
        panel, inputs, memory = own_tensors(
            (rows, self._stride, numbers),
            (tokens, self._y_stride, numbers),
            (1, self._y_stride + LANES, torch.float32),
        )
        padded = pad(x, (0, _up(p, LANES) - p)) if p % LANES else x
        self._call(
            kernel.mixed,
            tokens=tokens,
            columns=padded.shape[1],
            plane_stride=self._y_stride,
            x=padded,
            mixed=memory,
            high=inputs,
            in_factors=_padded(self._out_factors, self._y_stride),
        )
        results = torch.zeros(tokens, self._stride)
        scaled = inputs[:, : len(self._row_scales)] * self._row_scales.to(numbers)
        for span, decoded in self._decoded(kernel, panel):
            results += scaled[:, span] @ decoded
        if self._shifted:
            ones = inputs[:, : len(self._row_shifts)].float() @ self._row_shifts
            results += ones[:, None]
        if self._order_factors is not None:
            results *= self._order_factors
        results = self._in_place(results)
        self._call(
            kernel.finish,
            tokens=tokens,
            rows=q,
            rows_up=q,
            y_stride=q,
            y=results,
            out=out,
            out_factors=self._in_factors,
        )
        if self._factors is None:
            return out
        given = x if self._gain is None else x * self._gain.to(x.dtype)
        inner = given.to(numbers) @ self._factors.left.to(numbers)
        if self._factors.scales is not None:
            inner = inner * self._factors.scales.to(numbers)
        return torch.addmm(out.to(numbers), inner, self._factors.right.to(numbers)).to(self._dtype)

    def _in_place(self, results: Tensor) -> Tensor:
        """float32 [n, q], contiguous: numbers at the positions of inputs back at their columns."""
        q = self._packed.shape[1]
        if self._order is None:
            return results[:, :q].contiguous()
        positions = torch.empty(q + 1, dtype=torch.int64)
        positions[self._order.long()] = torch.arange(len(self._order))
        return results.index_select(1, positions[:q])

    def _call(self, function: Callable[[int], object], **values: Tensor | int | None) -> None:
        """Calls a function of a kernel with a job that differs in some slots."""
        job = _Job.from_buffer_copy(self._template)
        for name, value in values.items():
            job[_INDEX[name]] = value.data_ptr() if isinstance(value, Tensor) else value or 0
        function(ctypes.addressof(job))

    def _with_factors(self, x: Tensor, y: Tensor, numbers: torch.dtype) -> Tensor:
        """g (y + L1 L2 x)."""
        assert self._factors is not None
        factors = self._factors
        inner = x.to(numbers) @ factors.right.to(numbers).t()
        if factors.scales is not None:
            inner = inner * factors.scales.to(numbers)
        y = torch.addmm(y.to(numbers), inner, factors.left.to(numbers).t())
        return (y if self._gain is None else y * self._gain.to(numbers)).to(self._dtype)

    def _fill_template(self, sides: Sides) -> None:
        """What all jobs have in common."""
        packed, form = self._packed, self._form
        p, q = packed.shape
        codes = packed.sections[form.codes.section]
        lines = form.lines(packed.shape)
        self._set(
            columns=q,
            rows=p,
            rows_up=_up(p, LANES),
            lines=lines,
            line_bytes=codes.numel() // lines,
            line_codes=form.padded_codes(packed.shape),
            periods=form.padded_codes(packed.shape) // form.period,
            plane_stride=self._stride,
            y_stride=self._y_stride,
            row_blocks=self._row_blocks,
            rank=self._rank,
            codes=codes,
            tables=TARGETS[self._target].tables(form, sides.values),
            row_scales=_padded(sides.row_scales, self._y_stride),
            row_shifts=_padded(sides.row_shifts, self._y_stride),
            in_factors=sides.inputs.before,
            group_orders=sides.group_orders,
            group_lines=sides.group_lines,
            order=self._order,
            order_factors=sides.order_factors,
            out_factors=_padded(sides.outputs.before, self._y_stride),
            gain=_padded(sides.gain, self._y_stride),
        )
        if sides.factors is not None:
            missing = self._rank - sides.factors.left.shape[1]
            self._set(
                l1=pad(sides.factors.left, (0, missing)) if missing else sides.factors.left,
                l2=pad(sides.factors.right, (0, 0, 0, missing)) if missing else sides.factors.right,
                rank_scales=_padded(sides.factors.scales, self._rank),
            )
        if form.blocks is not None:
            values, target = sides.values, TARGETS[self._target]
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

    def _set(self, **values: Tensor | int | None) -> None:
        """Fills slots; tensors stay as long as the product."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                kept = value.contiguous()
                self._tensors.append(kept)
                self._template[_INDEX[name]] = kept.data_ptr()
            elif value is not None:
                self._template[_INDEX[name]] = value


class SumProduct:
    """Products with a matrix that is a sum: of codes in several sections, and of residuals that
    torch multiplies by.

    Terms are float32, each a kernel's own, and gains come after all of them.

    Args:
        packed: the matrix, checked, on the CPU.
        form: of its codes.
        sides: of each section of codes.
        dtype: type of activations.
        target: the processor (`jit.targets`).
    """

    def __init__(
        self, packed: PackedMatrix, form: Form, sides: list[Sides], dtype: torch.dtype, target: str
    ) -> None:
        self._packed = packed
        self._dtype = dtype
        self._stages, self._gain = sides[0].beside, sides[0].gain
        self._terms: list[CompiledProduct] = []
        codes: CodeWindows | None = form.codes
        for one in sides:
            assert codes is not None
            own, bare = form_for(codes, form, packed.shape), replace(one, gain=None)
            exact = dtype == torch.float32
            term = CompiledProduct(packed, own, bare, torch.float32, target, exact=exact)
            self._terms.append(term)
            codes = codes.rest

    @cached_property
    def _plain(self) -> PlainProduct:
        return PlainProduct(self._packed, self._dtype)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        x = x.to(torch.float32)
        y = self._terms[0].linear(x)
        for term in self._terms[1:]:
            y += term.linear(x)
        add_residuals(self._packed, self._stages, x, y)
        if self._gain is not None:
            y *= self._gain
        return y.to(self._dtype)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        return self._plain.transposed(x)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        return self._plain.rows(rows)


def _up(count: int, step: int) -> int:
    return ceil_div(count, step) * step


def _padded(values: Tensor | None, count: int) -> Tensor | None:
    return None if values is None else pad(values.to(torch.float32), (0, count - len(values)))
