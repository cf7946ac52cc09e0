"""Paths through a bit-shift trellis: the best one for given values (Viterbi), and its states.

Sequences are searched side by side, one to a lane of the last dimension, so that every step is a
few operations on long rows whatever the trellis looks like. Costs are kept for a window of steps
and the best predecessor is found on the way back: cheaper than keeping every choice. A window
reaches some steps beyond what it decides; the next one starts from the decided state. So memory
does not grow with the length of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DECIDED = 256
"""Steps that a window decides."""

AHEAD = 48
"""Steps that a window looks beyond: several times the memory of any trellis."""

LANES = 1 << 16
"""States times sequences that are searched side by side: the costs of a step stay in cache."""

DEVICE_LANES = 1 << 22
"""The same on an accelerator."""

UNREACHABLE = 1e30
"""Cost of a state that no path from the start has reached."""


def best_codes(
    values: Tensor,
    weights: Tensor | None,
    tables: Tensor,
    widths: Sequence[int],
    memory: int,
) -> Tensor:
    """The codes of least weighted squared error of each sequence.

    Args:
        values: [n, t].
        weights: [n, t], not negative; None for ones.
        tables: [widths in use, 2^memory]: the first for the least width.
        widths: bits of the code at each of the t steps.
        memory: bits of the state; above every width.

    Returns:
        uint8 [n, t].
    """
    count = len(values)
    lanes = LANES if values.device.type == "cpu" else DEVICE_LANES
    size = max(1, lanes >> memory)
    least = min(widths)
    by_width = {width: tables[min(width - least, len(tables) - 1)] for width in set(widths)}
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    window = min(DECIDED + AHEAD, len(widths))
    # One piece of memory for all: fresh memory costs more than the work that is done in it.
    room = values.new_empty((window + 1) * 2**memory * min(size, count))
    for first in range(0, count, size):
        lane = slice(first, first + size)
        part = None if weights is None else weights[lane].t().contiguous()
        across = values[lane].t().contiguous()  # [t, lanes]
        costs = room[: (window + 1) * 2**memory * across.shape[1]]
        costs = costs.view(window + 1, 2**memory, -1)
        codes[lane] = _search(across, part, by_width, widths, costs)
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


def _search(
    values: Tensor,
    weights: Tensor | None,
    tables: dict[int, Tensor],
    widths: Sequence[int],
    costs: Tensor,
) -> Tensor:
    """Codes [n, t] for values [t, n]; `costs` [window + 1, states, n] is room to work in."""
    steps, count = values.shape
    window, states = len(costs) - 1, costs.shape[1]
    lane = torch.arange(count, device=values.device)
    start = torch.zeros(count, dtype=torch.int64, device=values.device)
    codes = torch.empty(steps, count, dtype=torch.uint8, device=values.device)
    for first in range(0, steps, DECIDED):
        last = min(first + window, steps)
        decided = steps if last == steps else first + DECIDED
        costs[0].fill_(UNREACHABLE)
        costs[0, start, lane] = 0
        for step in range(first, last):
            place = step - first
            weight = None if weights is None else weights[step]
            table, width = tables[widths[step]], widths[step]
            _advance(costs[place], costs[place + 1], table, width, values[step], weight)
        state = costs[last - first].argmin(0)
        for step in range(last - 1, first - 1, -1):
            width = widths[step]
            if step == decided - 1:
                start = state
            if step < decided:
                codes[step] = (state & (2**width - 1)).to(torch.uint8)
            groups = states >> width
            group = state >> width
            tops = torch.arange(2**width, device=values.device)[:, None] * groups
            before = costs[step - first][tops + group, lane]  # [predecessors, n]
            state = before.argmin(0) * groups + group
        if decided == steps:
            break
    return codes.t()


def _advance(
    before: Tensor,
    after: Tensor,
    table: Tensor,
    width: int,
    values: Tensor,
    weights: Tensor | None,
) -> None:
    """One step: costs [states, n] of the best paths into each state, written to `after`.

    A state is (group, code) and comes from (any top bits, group).
    """
    states, count = before.shape
    groups = states >> width
    least = torch.amin(before.view(-1, groups, count), dim=0)  # [groups, n]
    apart = table.view(groups, -1, 1) - values  # [groups, codes, n]
    target = after.view(groups, -1, count)
    if weights is None:
        torch.addcmul(least[:, None, :], apart, apart, out=target)
    else:
        torch.addcmul(least[:, None, :], apart.square_(), weights, out=target)
