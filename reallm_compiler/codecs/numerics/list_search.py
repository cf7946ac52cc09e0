"""List search (M-algorithm): codes of trellis paths with the least cost, with feedback of errors.

A row w is coded column by column, t = 0, 1, ... With errors e_s = w_s - v_s of the columns before,

    target_t = w_t + sum_{s<t} U[s, t] e_s,      cost_t = D_t (target_t - v_t)^2

and with H = U diag(D) U^T the costs of a path add up to e H e^T (LDLQ, QuIP; GPTQ). The value of a
column depends on its state, the last `state_bits` bits of the row's codes,

    s_t = s_{t-1} >> k_t | c_t << (state_bits - k_t),      v_t = scale_t table[s_t]

so that the target depends on the path, and no dynamic program finds the best one. The search keeps
the `paths` best ones, at most one for each state, each with its own latest errors. When `WINDOW`
columns are undecided, the oldest `DECIDED` of them are taken from the best path; paths that differ
there end, and the decided errors go into targets of all later columns.

Without feedback and with a path for every state this is the Viterbi algorithm.

This module is the plain form, which runs on any device; `list_kernel` is the compiled form for the
CPU. Both do the same operations on float32 in the same order, and so choose the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.storage.trellis import WINDOW

LANES = 16
"""Terms of a sum that are added up side by side; the order of additions is part of the result."""

DECIDED = 32
"""Columns that are decided at once, a multiple of `LANES`."""

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProblem:
    """What is common to all rows.

    Attributes:
        table: float32 [2^state_bits], the value of each state.
        state_bits: bits of the state, above every width.
        widths: bits of the code of each of q columns.
        importance: float32 [q], D, not negative.
        feedback: float32 [q, q], the strictly upper triangle of U; None for no feedback.
        paths: paths that are kept, from 1 to 2^state_bits.
    """

    table: Tensor
    state_bits: int
    widths: Sequence[int]
    importance: Tensor
    feedback: Tensor | None
    paths: int

    def by_width(self) -> dict[int, Tensor]:
        """For each width k in use the table as [2^(state_bits - k), 2^k]: (older bits, code)."""
        return {width: self.table.view(2**width, -1).t().contiguous() for width in set(self.widths)}


def search(
    problem: SearchProblem, values: Tensor, scales: Tensor, start: Tensor | None = None
) -> Tensor:
    """The codes of rows.

    Args:
        problem: what is common to the rows.
        values: float32 [n, q], the rows w.
        scales: float32 [n, q] or [1, q], what table values are multiplied by.
        start: int64 [n], the states before the first column; zeros when None.

    Returns:
        uint8 [n, q].
    """
    return _Search(problem, values, scales, start).run()


class _Search:
    """The search of rows side by side; tensors hold [rows, paths, ...], paths packed to the front.

    A path that does not exist has the cost infinity.
    """

    def __init__(
        self, problem: SearchProblem, values: Tensor, scales: Tensor, start: Tensor | None
    ) -> None:
        count, columns = values.shape
        paths, device = problem.paths, values.device
        self.problem = problem
        self.values = values
        self.scales = scales
        self.tables = problem.by_width()
        self.cost = torch.full((count, paths), torch.inf, device=device)
        self.cost[:, 0] = 0
        self.state = torch.zeros(count, paths, dtype=torch.int64, device=device)
        if start is not None:
            self.state[:, 0] = start
        self.parent = torch.zeros(count, WINDOW, paths, dtype=torch.int64, device=device)
        self.code = torch.zeros(count, WINDOW, paths, dtype=torch.uint8, device=device)
        self.codes = torch.empty(count, columns, dtype=torch.uint8, device=device)
        # What decided errors add to the targets, and the errors of each path's undecided columns.
        self.decided = torch.zeros_like(values)
        self.error = torch.zeros(count, paths, WINDOW, device=device)

    def run(self) -> Tensor:
        """Codes of all columns."""
        columns = self.values.shape[1]
        base = 0
        for column in range(columns):
            offset = column - base
            self._extend(column, base, offset)
            if offset == WINDOW - 1 and column < columns - 1:
                self._decide(column, base)
                base += DECIDED
        best = self.cost.argmin(1)
        self._trace(best, columns - base, columns - base, base)
        return self.codes

    def _extend(self, column: int, base: int, offset: int) -> None:
        """Every path with every code, of which the best are kept."""
        width = self.problem.widths[column]
        value = self.values[:, column]
        target = (value + self.decided[:, column])[:, None].expand_as(self.cost)
        if self.problem.feedback is not None:
            target = target + self._fed_back(column, base)
        levels = self.tables[width][self.state >> width]  # [n, paths, codes]
        levels = levels * self.scales[:, column, None, None]
        distance = target[:, :, None] - levels
        cost = self.cost[:, :, None] + distance * distance * self.problem.importance[column]
        # No cost of a path that exists is infinite or NaN.
        cost = cost.where(cost < LARGEST, LARGEST)
        cost = cost.where(self.cost[:, :, None] < torch.inf, torch.inf)
        cost = cost.flatten(1)  # [n, paths x codes]: index = path x codes + code
        least = cost.amin(1, keepdim=True)
        kept = self._best_of(cost)
        kept_cost = cost.gather(1, kept)
        before, code = kept >> width, kept & (2**width - 1)
        state = self.state.gather(1, before) >> width
        state |= code << (self.problem.state_bits - width)
        chosen, exists = _one_per_state(state, kept_cost)  # [n, paths]
        before, code = before.gather(1, chosen), code.gather(1, chosen)
        self.cost = (kept_cost.gather(1, chosen) - least).where(exists, torch.inf)
        self.state = state.gather(1, chosen)
        self.parent[:, offset] = before
        self.code[:, offset] = code.to(torch.uint8)
        if self.problem.feedback is not None:
            self.error = self.error.gather(1, before[:, :, None].expand(-1, -1, WINDOW))
            level = levels.flatten(1).gather(1, kept.gather(1, chosen))
            self.error[:, :, offset] = value[:, None] - level

    def _fed_back(self, column: int, base: int) -> Tensor:
        """The part [n, paths] of the target that a path's own errors make."""
        assert self.problem.feedback is not None
        row = self.problem.feedback[base : base + WINDOW, column]
        row = torch.nn.functional.pad(row, (0, WINDOW - len(row)))
        products = (self.error * row).view(*self.cost.shape, -1, LANES)
        total: Tensor = products[:, :, 0]
        for part in range(1, products.shape[2]):
            total = total + products[:, :, part]
        while total.shape[2] > 1:
            half = total.shape[2] // 2
            total = total[:, :, :half] + total[:, :, half:]
        return total[:, :, 0]

    def _best_of(self, cost: Tensor) -> Tensor:
        """Indices [n, paths] of the least costs in ascending order; of equal ones the first."""
        order = cost.argsort(dim=1, stable=True)[:, : self.problem.paths]
        kept = order.where(cost.gather(1, order) < torch.inf, cost.shape[1] - 1)
        kept = kept.sort(1).values
        missing = self.problem.paths - kept.shape[1]
        return torch.nn.functional.pad(kept, (0, missing), value=cost.shape[1] - 1)

    def _decide(self, column: int, base: int) -> None:
        """Takes the oldest columns from the best path, and ends the paths that differ there."""
        best = self.cost.argmin(1)
        ancestor = torch.arange(self.problem.paths, device=best.device).expand_as(self.cost)
        for offset in range(WINDOW - 1, DECIDED - 1, -1):
            ancestor = self.parent[:, offset].gather(1, ancestor)
        chosen = ancestor.gather(1, best[:, None])
        self._trace(best, WINDOW, DECIDED, base)
        if self.problem.feedback is not None:
            row = torch.arange(len(best), device=best.device)
            error = self.error[row, best, :DECIDED]
            later = slice(column + 1, None)
            for offset in range(DECIDED):
                fed_back = error[:, offset, None] * self.problem.feedback[base + offset, later]
                self.decided[:, later] += fed_back
            self.error = torch.nn.functional.pad(self.error[:, :, DECIDED:], (0, DECIDED))
        alive = (ancestor == chosen) & (self.cost < torch.inf)
        order = (~alive).to(torch.uint8).argsort(dim=1, stable=True)
        self.cost = self.cost.where(alive, torch.inf).gather(1, order)
        self.state = self.state.gather(1, order)
        self.error = self.error.gather(1, order[:, :, None].expand(-1, -1, WINDOW))
        for history in (self.parent, self.code):
            history[:, -1] = history[:, -1].gather(1, order)
            history[:, : WINDOW - DECIDED] = history[:, DECIDED:].clone()

    def _trace(self, path: Tensor, length: int, wanted: int, base: int) -> None:
        """Codes of the oldest `wanted` of `length` undecided columns, along a path of each row."""
        path = path[:, None]
        for offset in range(length - 1, -1, -1):
            if offset < wanted:
                self.codes[:, base + offset] = self.code[:, offset].gather(1, path)[:, 0]
            path = self.parent[:, offset].gather(1, path)


def _one_per_state(state: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Of each state the path of least cost, of equal ones the first.

    Args:
        state: int64 [n, paths].
        cost: [n, paths], infinite for paths that do not exist.

    Returns:
        indices [n, paths] in the order in which their states first appear, and whether they exist.
    """
    paths = state.shape[1]
    state = state.where(cost < torch.inf, 2**62)  # paths that do not exist are one group, the last
    order = cost.argsort(dim=1, stable=True)
    order = order.gather(1, state.gather(1, order).argsort(dim=1, stable=True))
    grouped = state.gather(1, order)
    leads = torch.ones_like(grouped, dtype=torch.bool)
    leads[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    group = leads.cumsum(1) - 1
    first = torch.full_like(state, paths)
    first.scatter_reduce_(1, group, order, "amin")
    # Each group's leader is its best path; all other members are written beside the result.
    best = state.new_zeros(len(state), paths + 1)
    best.scatter_(1, group.where(leads, paths), order)
    exists = state.new_zeros(len(state), paths + 1, dtype=torch.bool)
    exists.scatter_(1, group.where(leads, paths), grouped < 2**62)
    first = first.where(exists[:, :paths], paths)
    by_appearance = first.argsort(dim=1, stable=True)
    return best.gather(1, by_appearance), exists.gather(1, by_appearance)
