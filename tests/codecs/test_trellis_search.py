"""Viterbi against every path, and states against a plain loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs.quantizers import trellis_search
from reallm_compiler.codecs.quantizers.trellis_search import best_codes, states_of


def slow_states(codes, widths, memory):
    state, found = 0, []
    for code, width in zip(codes, widths, strict=True):
        state = ((state << width) | code) % 2**memory
        found.append(state)
    return found


def cost(path, values, weights, tables, widths, memory):
    least = min(widths)
    states = slow_states(path, widths, memory)
    return sum(
        float(weights[t] * (tables[widths[t] - least][states[t]] - values[t]) ** 2)
        for t in range(len(path))
    )


@pytest.mark.parametrize(
    ("widths", "memory"),
    [([1] * 7, 3), ([2] * 4, 3), ([1, 2, 1, 1, 2], 4), ([2, 3, 3], 5), ([1], 2)],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_path_is_the_best_of_all(widths, memory, weighted, gaussian):
    tables = gaussian(max(widths) - min(widths) + 1, 2**memory, seed=1).double()
    values = gaussian(3, len(widths), seed=2).double()
    weights = gaussian(3, len(widths), seed=3).double().square()
    given = weights if weighted else None
    used = weights if weighted else torch.ones_like(weights)
    codes = best_codes(values, given, tables, widths, memory)
    for row in range(len(values)):
        found = cost(codes[row].tolist(), values[row], used[row], tables, widths, memory)
        every = itertools.product(*(range(2**width) for width in widths))
        best = min(cost(path, values[row], used[row], tables, widths, memory) for path in every)
        assert found == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("widths", "memory"),
    [([1] * 9, 4), ([3] * 5, 10), ([8, 7, 8, 8], 16), ([1, 2] * 6, 16), ([5], 6)],
    ids=str,
)
def test_states_by_a_plain_loop(widths, memory):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(2**width, (6,), generator=generator) for width in widths]
    codes = torch.stack(columns, 1).to(torch.uint8)
    expected = [slow_states(row, widths, memory) for row in codes.tolist()]
    assert states_of(codes, widths, memory).tolist() == expected


def test_windows_lose_nothing_that_can_be_seen(gaussian, monkeypatch):
    values, tables = gaussian(4, 300), gaussian(1, 64, seed=1)
    widths = [2] * 300

    def error():
        codes = best_codes(values, None, tables, widths, 6)
        decoded = tables[0][states_of(codes, widths, 6)]
        return float((decoded - values).square().sum())

    whole = error()
    monkeypatch.setattr(trellis_search, "DECIDED", 32)
    assert whole <= error() <= 1.002 * whole
    monkeypatch.setattr(trellis_search, "AHEAD", 0)
    assert error() > whole  # a window that does not look ahead is worse


def test_lanes_do_not_meet(gaussian, monkeypatch):
    values, tables = gaussian(11, 20), gaussian(1, 16, seed=1)
    together = best_codes(values, None, tables, [1] * 20, 4)
    monkeypatch.setattr(trellis_search, "LANES", 16 * 3)
    assert torch.equal(best_codes(values, None, tables, [1] * 20, 4), together)
