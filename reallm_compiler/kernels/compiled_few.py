"""Products of a few tokens, which meet the codes directly (`compiled`)."""

from __future__ import annotations

import ctypes
import threading
from functools import cached_property

import torch
from torch import Tensor

from reallm_compiler.kernels import jit, threads
from reallm_compiler.kernels.compiled_job import INDEX, MatrixJob, up
from reallm_compiler.kernels.form import LANES
from reallm_compiler.kernels.llvm_text_call import LINES
from reallm_compiler.kernels.memory import aligned, own_memory

LEAST_FOR_THREADS = 1 << 17
"""Weights of a matrix that is worth a second thread."""


class _Own(threading.local):
    """A job of the calling thread, ready but for the activations."""

    job: ctypes.Array[ctypes.c_int64] | None = None
    tokens: int = 0
    size: int = 0
    first: int = 0


class FewTokens:
    """Products with one packed matrix [p, q].

    Args:
        matrix: its job.
    """

    def __init__(self, matrix: MatrixJob) -> None:
        self._matrix = matrix
        self._own = _Own()

    @cached_property
    def _one(self) -> jit.Direct:
        return jit.direct(self._kernel("one"), self._matrix.target)

    @cached_property
    def _several(self) -> jit.Direct:
        return jit.direct(self._kernel("several"), self._matrix.target)

    def _kernel(self, work: jit.Work) -> jit.Kernel:
        matrix = self._matrix
        return jit.Kernel(form=matrix.form, inputs=matrix.inputs, outputs=matrix.outputs, work=work)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p], n at least 1."""
        matrix, tokens = self._matrix, len(x)
        packed = matrix.packed
        kernel = self._several if tokens > 1 else self._one
        y = torch.empty(tokens, packed.shape[0], dtype=matrix.dtype)
        job = self._job(tokens)
        count = torch.get_num_threads() if packed.layout.numel >= LEAST_FOR_THREADS else 1
        job[INDEX["x"]] = x.data_ptr()
        job[INDEX["out"]] = y.data_ptr()
        job[INDEX["threads"]] = count
        address = ctypes.addressof(job)
        if count == 1 or threads.openmp() is not None:
            kernel.linear(address)
            return y
        kernel.prepare(address)
        kernel.inner(address)
        lines = matrix.form.lines(packed.shape)
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
        own.job = self._matrix.copy()
        own.job[INDEX["tokens"]] = tokens
        own.job[INDEX["integers"]] = self._sets(tokens)
        for name, size in parts.items():
            own.job[INDEX[name]] = place
            place += size
        return own.job

    def _sets(self, tokens: int) -> int:
        """Sets of integers of so many tokens."""
        return 2 * tokens if self._matrix.exact else tokens

    def _parts(self, tokens: int) -> dict[str, int]:
        """Bytes of the parts of a job's memory."""
        matrix, sets = self._matrix, self._sets(tokens)
        q, stride = matrix.packed.shape[1], matrix.stride
        sizes = {
            "kept": 4 * tokens * q if matrix.rank else 0,
            "mixed": 4 * (max(q, stride) + LANES),
            "ordered": 4 * stride if matrix.inputs.ordered else 0,
            "high": sets * stride * (1 if matrix.inputs.planes else 2),
            "low": sets * stride if matrix.inputs.planes else 0,
            "scales": 4 * sets,
            "totals": 8 * sets,
            "block_sums": 4 * sets * up(matrix.row_blocks, LANES),
            "inner": 4 * tokens * matrix.rank,
            "y": 4 * sets * matrix.y_stride,
        }
        return {name: aligned(size) for name, size in sizes.items()}
