"""Paths through a bit-shift trellis: the best one for given values (Viterbi), and its states.

Sequences are searched side by side, one to a lane of the last dimension, so that every step is a
few operations on long rows whatever the trellis looks like. Of each step only the least cost of the
ways into a group of states is kept, and the best predecessor is found again on the way back: less
memory to write than every choice, or every cost. A window reaches some steps beyond what it
decides; the next one starts from the decided state. So memory does not grow with the length of a
sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.storage.trellis import AHEAD, DECIDED, DEVICE_LANES

LANES = 1 << 17
"""States times sequences that are searched side by side: the costs of a step stay in cache."""

UNREACHABLE = 1e30
"""Cost of a state that no path from the start has reached."""


def best_codes(
    values: Tensor,
    weights: Tensor | None,
    tables: Tensor,
    widths: Sequence[int],
    memory: int,
    *,
    least: int | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The codes of least weighted squared error of each sequence.

    Args:
        values: [n, t].
        weights: [n, t], not negative; None for ones.
        tables: [widths in use, 2^memory]: the first for the least width.
        widths: bits of the code at each of the t steps.
        memory: bits of the state; above every width.
        least: the width that the first table is for; the least of `widths` when None.
        start: int64 [n], the state before the first step; 0 when None.

    Returns:
        uint8 [n, t].
    """
    count = len(values)
    lanes = LANES if values.device.type == "cpu" else DEVICE_LANES
    size = max(1, lanes >> memory)
    least = min(widths) if least is None else least
    by_width = {width: tables[min(width - least, len(tables) - 1)] for width in set(widths)}
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    # One piece of memory for all: fresh memory costs more than the work that is done in it.
    room = _Room(values, min(size, count), len(widths), memory, min(widths))
    for first in range(0, count, size):
        lane = slice(first, first + size)
        part = None if weights is None else weights[lane].t().contiguous()
        across = values[lane].t().contiguous()  # [t, lanes]
        begin = None if start is None else start[lane]
        codes[lane] = _search(across, part, by_width, widths, room.of(across.shape[1]), begin)
    return codes


def states_of(codes: Tensor, widths: Sequence[int], memory: int) -> Tensor:
    """States s_t of codes [n, t], int64 [n, t]."""
    ends = torch.tensor([0, *widths]).cumsum(0)[1:].to(codes.device)  # bits up to each code
    wide = codes.to(torch.int32)
    state = wide.clone()
    for back in range(1, len(widths)):
        shift = ends[back:] - ends[:-back]
        if int(shift.min()) >= memory:
            break
        # A code that is shifted out of the state altogether is shifted no further than that.
        state[:, back:] |= wide[:, :-back] << shift.clamp(max=memory).to(torch.int32)
    state &= 2**memory - 1
    return state.to(torch.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Costs:
    """Memory of one search.

    Attributes:
        now: [states, n], costs of the best paths into the states.
        work: likewise, for what is added.
        least: [window, groups, n], the least cost of the ways into each group of states, by step.
    """

    now: Tensor
    work: Tensor
    least: Tensor


class _Room:
    """Memory for searches of up to `lanes` sequences side by side."""

    def __init__(self, like: Tensor, lanes: int, steps: int, memory: int, width: int) -> None:
        self._states = 2**memory
        self._groups = self._states >> width
        self._window = min(DECIDED + AHEAD, steps)
        self._now = like.new_empty(self._states * lanes)
        self._work = like.new_empty(self._states * lanes)
        self._least = like.new_empty(self._window * self._groups * lanes)

    def of(self, lanes: int) -> _Costs:
        """The memory for a number of sequences."""
        size = self._states * lanes
        return _Costs(
            now=self._now[:size].view(self._states, lanes),
            work=self._work[:size].view(self._states, lanes),
            least=self._least[: self._window * self._groups * lanes].view(
                self._window, self._groups, lanes
            ),
        )


def _search(
    values: Tensor,
    weights: Tensor | None,
    tables: dict[int, Tensor],
    widths: Sequence[int],
    costs: _Costs,
    begin: Tensor | None,
) -> Tensor:
    """Codes [n, t] for values [t, n]."""
    steps, count = values.shape
    window, states = len(costs.least), len(costs.now)
    lane = torch.arange(count, device=values.device)
    start = torch.zeros(count, dtype=torch.int64, device=values.device)
    if begin is not None:
        start.copy_(begin)
    codes = torch.empty(steps, count, dtype=torch.uint8, device=values.device)
    tops = {
        width: torch.arange(2**width, device=values.device)[:, None] * (states >> width)
        for width in tables
    }
    for first in range(0, steps, DECIDED):
        last = min(first + window, steps)
        decided = steps if last == steps else first + DECIDED
        costs.now.fill_(UNREACHABLE)
        costs.now[start, lane] = 0
        for step in range(first, last):
            weight = None if weights is None else weights[step]
            table, width = tables[widths[step]], widths[step]
            _advance(costs, step - first, table, width, values[step], weight)
        state = costs.now.argmin(0)
        for step in range(last - 1, first - 1, -1):
            width = widths[step]
            if step == decided - 1:
                start = state
            if step < decided:
                codes[step] = (state & (2**width - 1)).to(torch.uint8)
            if step == first:
                break
            before = tops[width] + (state >> width)  # [predecessors, n]
            apart = tables[widths[step - 1]][before] - values[step - 1]
            apart.square_()
            if weights is not None:
                apart *= weights[step - 1]
            apart += costs.least[step - 1 - first][before >> widths[step - 1], lane]
            state = before.gather(0, apart.argmin(0, keepdim=True))[0]
        if decided == steps:
            break
    return codes.t()


def _advance(
    costs: _Costs,
    place: int,
    table: Tensor,
    width: int,
    values: Tensor,
    weights: Tensor | None,
) -> None:
    """One step of a window: the costs after it, in the place of those before it.

    A state is (group, code) and comes from (any top bits, group).
    """
    states, count = costs.now.shape
    groups = states >> width
    least = costs.least[place, :groups]
    torch.amin(costs.now.view(-1, groups, count), dim=0, out=least)
    apart = costs.work.view(groups, -1, count)
    torch.sub(table.view(groups, -1, 1), values, out=apart)  # [groups, codes, n]
    target = costs.now.view(groups, -1, count)
    if weights is None:
        torch.addcmul(least[:, None, :], apart, apart, out=target)
    else:
        torch.addcmul(least[:, None, :], apart.square_(), weights, out=target)
