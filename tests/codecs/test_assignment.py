"""Assignment: the nearest codeword, in blocks and on ties; sums by codeword."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs.numerics import assignment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_errors(values, weights, codebook):
    difference = (values[:, None].double() - codebook[None].double()).square()  # [n, K, d]
    if weights is None:
        return difference.sum(2)
    wide = weights.double() if weights.dim() == 2 else weights.double()[:, None]
    return (difference * wide[:, None]).sum(2)


def weights_of(kind, n, d):
    if kind == "none":
        return None
    return torch.rand(n, d, generator=generator(7)) if kind == "element" else torch.rand(n)


@pytest.mark.parametrize("kind", ["none", "vector", "element"])
@pytest.mark.parametrize(("dim", "count"), [(1, 4), (1, 256), (2, 16), (4, 256), (5, 2), (2, 4096)])
def test_assignment_is_the_nearest_codeword(kind, dim, count):
    values = torch.randn(500, dim, generator=generator())
    codebook = torch.randn(count, dim, generator=generator(1))
    if dim == 1:
        codebook = codebook.sort(dim=0).values
    weights = weights_of(kind, 500, dim)
    nearest = assignment.assign(values, weights, codebook)
    errors = slow_errors(values, weights, codebook)
    chosen = errors.gather(1, nearest[:, None])[:, 0]
    assert (chosen <= errors.amin(1) + 1e-5).all()


def test_blocks_of_words_join_without_a_seam(monkeypatch):
    values = torch.randn(300, 3, generator=generator())
    codebook = torch.randn(100, 3, generator=generator(1))
    whole = assignment.assign(values, None, codebook)
    monkeypatch.setattr(assignment, "CODEWORD_BLOCK", 7)
    assert torch.equal(assignment.assign(values, None, codebook), whole)


@pytest.mark.parametrize("count", [3, 16])
def test_ties_go_to_the_lowest_index(count, monkeypatch):
    monkeypatch.setattr(assignment, "CODEWORD_BLOCK", 4)
    codebook = torch.ones(count, 2)
    assert assignment.assign(torch.randn(5, 2), None, codebook).tolist() == [0] * 5


def test_sums_by_word_are_the_same_in_sorted_runs():
    values = torch.randn(400, 3, generator=generator())
    nearest = torch.randint(10, (400,), generator=generator(1))
    expected = torch.zeros(12, 3, dtype=torch.float64).index_add_(0, nearest, values.double())
    torch.testing.assert_close(assignment.sums_by_codeword(values, nearest, 12), expected)
    torch.testing.assert_close(assignment._sums_of_runs(values, nearest, 12), expected)
