"""Searches trellis paths for many rows: by the compiled program on the CPU where there is one.

The rows of a panel go to as many threads as torch has; each row is searched by itself, so the
number of threads changes no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import emit, list_kernel, list_search
from reallm_compiler.codecs.numerics.list_search import SearchProblem
from reallm_compiler.storage.trellis import DEVICE_ROWS

ROWS = 16
"""Rows of one call of the compiled program, which share what they read of U."""

PLAIN_ROWS = 256
"""Rows that the plain form searches side by side on the CPU."""


class Searcher:
    """Searches the paths of rows.

    Args:
        problem: what is common to the rows.

    Attributes:
        problem: the same.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self._compiled: list_kernel.CompiledSearch | None = None
        if problem.table.device.type == "cpu" and emit.available():
            self._compiled = list_kernel.CompiledSearch(problem)

    def codes(self, values: Tensor, scales: Tensor, start: Tensor | None = None) -> Tensor:
        """The codes of least cost.

        Args:
            values: float32 [n, q], the rows, in the coded order.
            scales: float32 [n, q] or [1, q], what table values are multiplied by.
            start: int64 [n], the states before the first column; zeros when None.

        Returns:
            uint8 [n, q].
        """
        codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
        rows = PLAIN_ROWS if values.device.type == "cpu" else DEVICE_ROWS
        rows = rows if self._compiled is None else ROWS

        def work(first: int) -> None:
            part = slice(first, first + rows)
            own = scales if len(scales) == 1 else scales[part]
            begin = None if start is None else start[part]
            if self._compiled is None:
                codes[part] = list_search.search(self.problem, values[part], own, begin)
            else:
                codes[part] = self._compiled(values[part], own, begin)

        threads = min(torch.get_num_threads(), -(-len(values) // rows))
        if self._compiled is None or threads == 1:
            for first in range(0, len(values), rows):
                work(first)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(0, len(values), rows)))
        return codes

    def states(self, values: Tensor, scales: Tensor) -> Tensor:
        """The states int32 [n, q] of the paths of least cost; see `codes`."""
        codes = self.codes(values, scales)
        return states_of(codes, self.problem.widths, self.problem.state_bits)


def states_of(
    codes: Tensor, widths: Sequence[int], bits: int, start: Tensor | None = None
) -> Tensor:
    """The states int32 [n, q] after each of the codes [n, q].

    Args:
        codes: uint8, in the coded order.
        widths: bits of the code of each of q columns.
        bits: bits of the state.
        start: int64 [n], the states before the first column; zeros when None.
    """
    ends, shifts = _shifts(tuple(widths), bits)
    wide = codes.to(torch.int32)
    states = torch.zeros_like(wide)
    for back, (left, right) in enumerate(shifts):
        part = wide[:, : codes.shape[1] - back]
        states[:, back:] |= (part << left.to(part.device)) >> right.to(part.device)
    if start is not None:
        gone = ends.clamp(max=31).to(codes.device)
        states |= start.to(torch.int32)[:, None] >> gone
    return states


@lru_cache(maxsize=64)
def _shifts(widths: tuple[int, ...], bits: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Bits up to and with each code, int32 [q]; and how far codes are shifted into later states.

    For each number of columns before, as long as a code reaches so far: shifts to the left and to
    the right, int32, of which one is 0.
    """
    width = torch.tensor(widths, dtype=torch.int32)
    ends = width.cumsum(0, dtype=torch.int32)
    shifts = []
    for back in range(len(widths)):
        later = ends[back:] - ends[: len(ends) - back]  # bits after the code
        if int(later.min()) >= bits:
            break
        shift = bits - later - width[: len(ends) - back]
        shifts.append((shift.clamp(min=0), (-shift).clamp(0, 31)))
    return ends, shifts
