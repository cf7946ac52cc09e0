"""The compiled form of `list_search` for the CPU, where llvmlite is installed.

One program for each set of state bits, paths and widths. Rows stand side by side only where they
share memory traffic: when decided errors are added to later targets, each row of U is read once
for all of them. Everything else goes row by row. Every operation on numbers is that of the plain
form, in its order, so the codes are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.list_memory import Shape, row_bytes, scratch_bytes
from reallm_compiler.codecs.numerics.list_program import source
from reallm_compiler.codecs.numerics.list_search import LANES, SearchProblem
from reallm_compiler.storage.trellis import WINDOW


class CompiledSearch:
    """A search problem in the form that the program reads; it may be used by several threads.

    Args:
        problem: the problem, on the CPU.
    """

    def __init__(self, problem: SearchProblem) -> None:
        widths = tuple(sorted(set(problem.widths)))
        columns = len(problem.widths)
        self._columns = columns
        self._shape = Shape(problem.state_bits, problem.paths, widths, problem.feedback is not None)
        self._run = compiled(self._shape)
        by_width = problem.by_width()
        self._tables = torch.cat([by_width[width].reshape(-1) for width in widths])
        index = {width: number for number, width in enumerate(widths)}
        self._width = torch.tensor([index[width] for width in problem.widths], dtype=torch.uint8)
        self._importance = problem.importance.contiguous()
        # Rows are read beyond their end, in whole windows.
        self._stride = (columns // LANES + 1) * LANES + WINDOW
        self._by_source = self._by_target = torch.empty(0)
        if problem.feedback is not None:
            self._by_source = problem.feedback.new_zeros(columns, self._stride)
            self._by_source[:, :columns] = problem.feedback
            self._by_target = problem.feedback.new_zeros(columns, self._stride)
            self._by_target[:, :columns] = problem.feedback.t()

    def __call__(self, values: Tensor, scales: Tensor, start: Tensor | None = None) -> Tensor:
        """Codes uint8 [n, q] of rows [n, q]; see `list_search.search`."""
        count = len(values)
        states = torch.zeros(count, dtype=torch.int64) if start is None else start.contiguous()
        assert values.shape[1] == self._columns
        assert values.dtype == scales.dtype == torch.float32
        values, scales = values.contiguous(), scales.contiguous()
        codes = torch.empty(values.shape, dtype=torch.uint8)
        memory = torch.empty(count * row_bytes(self._shape, self._columns), dtype=torch.uint8)
        scratch = torch.zeros(scratch_bytes(self._shape), dtype=torch.uint8)
        self._run(
            count,
            self._columns,
            values.data_ptr(),
            scales.data_ptr(),
            0 if len(scales) == 1 else self._columns,
            self._importance.data_ptr(),
            self._width.data_ptr(),
            self._tables.data_ptr(),
            self._by_target.data_ptr(),
            self._by_source.data_ptr(),
            self._stride,
            states.data_ptr(),
            codes.data_ptr(),
            memory.data_ptr(),
            row_bytes(self._shape, self._columns),
            scratch.data_ptr(),
        )
        return codes


@lru_cache(maxsize=32)
def compiled(shape: Shape) -> Callable[..., None]:
    """The program for a shape, which runs without the GIL; `emit.available` must be true."""
    program = emit.Program(source(shape))
    pointer, integer = c_void_p, c_int64
    kinds = [integer, integer, pointer, pointer, integer, pointer, pointer, pointer, pointer]
    kinds += [pointer, integer, pointer, pointer, pointer, integer, pointer]
    function = CFUNCTYPE(None, *kinds)(program.address("search"))

    def run(*arguments: int) -> None:
        assert program is not None  # it owns the code
        function(*arguments)

    return run
