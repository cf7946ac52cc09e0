"""List search: against Viterbi and plain enumeration; the compiled form against the plain one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import emit, list_kernel, list_search
from reallm_compiler.codecs.numerics.list_search import SearchProblem
from reallm_compiler.codecs.quantizers.trellis_search import Searcher
from reallm_compiler.storage.trellis import WINDOW

compiled = pytest.mark.skipif(not emit.available(), reason="llvmlite is not installed")


def normal_table(state_bits: int) -> Tensor:
    quantiles = (torch.arange(2**state_bits, dtype=torch.float64) + 0.5) / 2**state_bits
    order = torch.randperm(2**state_bits, generator=torch.Generator().manual_seed(1))
    return torch.special.ndtri(quantiles)[order].float()


def problem(
    columns: int,
    *,
    state_bits: int = 5,
    widths: tuple[int, ...] = (2, 2, 3),
    paths: int = 8,
    feedback: bool = False,
    weighted: bool = True,
) -> SearchProblem:
    generator = torch.Generator().manual_seed(columns)
    upper = torch.randn(columns, columns, generator=generator).triu(1) * 0.5 / columns**0.5
    importance = torch.rand(columns, generator=generator) + 0.5
    return SearchProblem(
        table=normal_table(state_bits),
        state_bits=state_bits,
        widths=[widths[column % len(widths)] for column in range(columns)],
        importance=importance if weighted else torch.ones(columns),
        feedback=upper if feedback else None,
        paths=paths,
    )


def decoded(one: SearchProblem, codes: Tensor, scales: Tensor) -> Tensor:
    """Values of codes [n, q], by the definition of the state."""
    state = torch.zeros(len(codes), dtype=torch.int64)
    values = []
    for column, width in enumerate(one.widths):
        state = state >> width | codes[:, column].long() << (one.state_bits - width)
        values.append(one.table[state])
    return torch.stack(values, 1) * scales


def costs(one: SearchProblem, values: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """float64 [n]: costs of the rows, by the formula."""
    error = (values - decoded(one, codes, scales)).double()
    moved = error if one.feedback is None else error + error @ one.feedback.double()
    return (one.importance.double() * moved.square()).sum(1)


def viterbi(one: SearchProblem, values: Tensor) -> Tensor:
    """float64 [n]: the least costs without feedback, by dynamic programming over all states."""
    least = torch.full((len(values), 2**one.state_bits), torch.inf, dtype=torch.float64)
    least[:, 0] = 0
    for column, width in enumerate(one.widths):
        following = torch.full_like(least, torch.inf)
        for state, code in itertools.product(range(2**one.state_bits), range(2**width)):
            after = state >> width | code << (one.state_bits - width)
            distance = (values[:, column] - one.table[after]).double().square()
            cost = least[:, state] + one.importance[column].double() * distance
            following[:, after] = torch.minimum(following[:, after], cost)
        least = following
    return least.amin(1)


def rows(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(7))


ONES = torch.ones(1, 1)


@pytest.mark.parametrize("columns", [1, 2, 40])
def test_a_path_for_every_state_is_viterbi(columns):
    one = problem(columns, state_bits=4, paths=16)
    values = rows(3, columns)
    scales = ONES.expand(1, columns)
    found = costs(one, values, list_search.search(one, values, scales), scales)
    assert torch.allclose(found, viterbi(one, values), rtol=1e-5)


def test_enough_paths_find_the_best_of_all_codes_with_feedback():
    one = problem(5, state_bits=4, widths=(2,), paths=16, feedback=True)
    values = rows(4, 5)
    every = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.uint8)
    scales = ONES.expand(1, 5)
    best = torch.stack(
        [costs(one, row.expand(len(every), 5), every, scales).amin() for row in values]
    )
    found = costs(one, values, list_search.search(one, values, scales), scales)
    # Paths that meet in a state are compared by what they cost so far, so the best may be lost.
    assert (found >= best * (1 - 1e-5)).all()
    assert found.mean() < 1.15 * best.mean()


@pytest.mark.parametrize("feedback", [False, True])
def test_more_paths_cost_less(feedback):
    values, scales = rows(12, 150), ONES.expand(1, 150)
    totals = []
    for paths in (1, 4, 16, 32):
        one = problem(150, paths=paths, feedback=feedback)
        codes = list_search.search(one, values, scales)
        totals.append(float(costs(one, values, codes, scales).sum()))
    assert totals == sorted(totals, reverse=True)
    assert totals[2] < 0.6 * totals[0]


def test_a_search_goes_on_from_a_state():
    one = problem(30, weighted=False)
    values, scales = rows(6, 30), ONES.expand(1, 30)
    start = torch.arange(6) * 5
    codes = list_search.search(one, values, scales, start)
    first = one.table[
        start >> one.widths[0] | codes[:, 0].long() << (one.state_bits - one.widths[0])
    ]
    choices = torch.stack(
        [
            one.table[start >> one.widths[0] | code << (one.state_bits - one.widths[0])]
            for code in range(2 ** one.widths[0])
        ]
    )
    assert ((choices - first).abs().amin(0) == 0).all()
    assert not torch.equal(codes, list_search.search(one, values, scales))


@compiled
@pytest.mark.parametrize("columns", [1, 15, WINDOW - 1, WINDOW, WINDOW + 1, 200])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(("paths", "widths"), [(1, (2,)), (8, (2, 2, 3)), (24, (1, 2)), (7, (4,))])
def test_the_compiled_form_chooses_the_same_codes(columns, feedback, paths, widths):
    one = problem(columns, paths=paths, widths=widths, feedback=feedback)
    values = rows(11, columns)
    values[3] = 0  # equal costs
    values[4] *= 1e20  # costs beyond float32
    scales = torch.rand(11, columns, generator=torch.Generator().manual_seed(2)) + 0.5
    scales[5] = 0
    start = torch.arange(11) % 2**one.state_bits
    plain = list_search.search(one, values, scales, start)
    assert torch.equal(list_kernel.CompiledSearch(one)(values, scales, start), plain)


@compiled
def test_rows_do_not_depend_on_each_other():
    one = problem(130, feedback=True)
    values, scales = rows(21, 130), ONES.expand(1, 130).contiguous()
    search = list_kernel.CompiledSearch(one)
    whole = search(values, scales)
    parts = [search(values[first : first + 4], scales) for first in range(0, 21, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_threads_change_no_code():
    one = problem(70, feedback=True)
    values, scales = rows(50, 70), ONES.expand(1, 70).contiguous()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(Searcher(one).codes(values, scales))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_without_llvmlite_the_codes_are_the_same(monkeypatch):
    one = problem(70, feedback=True)
    values, scales = rows(20, 70), ONES.expand(1, 70).contiguous()
    compiled_codes = Searcher(one).codes(values, scales)
    monkeypatch.setattr(emit, "available", lambda: False)
    assert torch.equal(Searcher(one).codes(values, scales), compiled_codes)
