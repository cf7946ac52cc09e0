"""k-means: the published errors, weights, empty clusters and momentum."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs.numerics import assignment, k_means
from reallm_compiler.codecs.numerics.seeding import seed_codebook
from reallm_compiler.codecs.numerics.vectors import DenseVectors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("dim", "bits", "mse"),
    [(1, 2, 0.118), (1, 3, 0.0345), (2, 2, 0.1087), (2, 3, 0.0301), (4, 2, 0.0958)],
)
def test_published_errors_on_normal_vectors(dim, bits, mse):
    values = torch.randn(1 << 18, generator=generator()).view(-1, dim)
    vectors = DenseVectors(values=values)
    codebook = k_means.fit(vectors, 2 ** (bits * dim), 25, generator(1))
    error = assignment.errors(values, None, codebook).sum() / values.numel()
    assert float(error) <= mse * 1.01
    assert float(error) >= mse * 0.97


def test_lloyd_never_ends_worse_than_it_began():
    vectors = DenseVectors(values=torch.randn(4000, 2, generator=generator()))
    start = seed_codebook(vectors, 16, generator(2))
    before = float(assignment.errors(vectors.values, None, start).sum())
    last = before
    for iterations in (1, 2, 5, 20):
        codebook, _ = k_means.lloyd(vectors, start, iterations, 1e-4)
        error = float(assignment.errors(vectors.values, None, codebook).sum())
        assert error <= last * 1.002
        last = min(last, error)
    assert last < before * 0.9


def test_momentum_comes_to_less_error_in_as_many_steps(monkeypatch):
    values = torch.randn(1 << 13, 2, generator=generator())
    vectors = DenseVectors(values=values)
    start = seed_codebook(vectors, 64, generator(1))
    _, error = k_means.lloyd(vectors, start, 12, 1e-4)
    monkeypatch.setattr(k_means, "MOMENTUM", 0.0)
    _, beyond = k_means.lloyd(vectors, start, 12, 1e-4)
    monkeypatch.setattr(k_means, "BEYOND", 1.0)
    _, plain = k_means.lloyd(vectors, start, 12, 1e-4)
    assert error < beyond < plain


def test_a_step_too_far_is_taken_back(monkeypatch):
    passes = []  # the error of each codebook that was tried, and the means that it leads to
    statistics = k_means._statistics

    def recorded(vectors, codebook):
        error, sums, weight_sums = statistics(vectors, codebook)
        passes.append((error, codebook, (sums / weight_sums).float()))
        return error, sums, weight_sums

    monkeypatch.setattr(k_means, "_statistics", recorded)
    monkeypatch.setattr(k_means, "BEYOND", 2.5)
    vectors = DenseVectors(values=torch.randn(2000, 2, generator=generator()))
    codebook, error = k_means.lloyd(vectors, seed_codebook(vectors, 16, generator(1)), 25, 1e-4)
    best, taken_back = passes[0], 0
    for number, tried in enumerate(passes[1:-1], start=1):
        if tried[0] > best[0]:
            assert torch.equal(passes[number + 1][1], best[2])
            taken_back += 1
        best = min(best, tried, key=lambda one: one[0])
    assert taken_back
    assert error == min(one[0] for one in passes)
    assert float(assignment.errors(vectors.values, None, codebook).sum()) <= error


def test_the_best_of_three_runs_is_taken_for_few_words(monkeypatch):
    values = torch.randn(1 << 12, 2, generator=generator())
    vectors = DenseVectors(values=values)

    def error_of(runs):
        monkeypatch.setattr(k_means, "RESTARTS", runs)
        books = [k_means.fit(vectors, 16, 25, generator(seed)) for seed in range(5)]
        return [float(assignment.errors(values, None, book).sum()) for book in books]

    once, thrice = error_of(1), error_of(3)
    assert all(best <= one * (1 + 1e-4) for best, one in zip(thrice, once, strict=True))
    assert sum(thrice) < sum(once) * 0.999


def test_a_settled_codebook_stays():
    values = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2]])
    codebook, _ = k_means.lloyd(
        DenseVectors(values=values), torch.tensor([[0.0, 1], [10, 1]]), 50, 1e-4
    )
    assert codebook.tolist() == [[0, 1], [10, 1]]


def test_heavy_vectors_pull_the_mean():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    vectors = DenseVectors(values=values, weights=torch.tensor([3.0, 1.0]))
    codebook, error = k_means.lloyd(vectors, torch.tensor([[0.4, 0.4]]), 20, 1e-4)
    assert codebook.tolist() == [[0.25, 0.25]]
    assert error == pytest.approx(2 * (3 * 0.25**2 + 0.75**2))


def test_heavy_elements_pull_their_own_mean():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    weights = torch.tensor([[3.0, 1.0], [1.0, 0.0]])
    vectors = DenseVectors(values=values, weights=weights)
    codebook, _ = k_means.lloyd(vectors, torch.tensor([[0.5, 0.5]]), 20, 1e-4)
    assert codebook.tolist() == [[0.25, 0.0]]


def test_an_empty_word_moves_to_the_worst_vector():
    values = torch.cat([torch.zeros(50, 2), torch.tensor([[8.0, 0.0]]), torch.ones(50, 2)])
    start = torch.tensor([[0.5, 0.5], [99.0, 99.0], [88.0, 88.0]])
    codebook, _ = k_means.lloyd(DenseVectors(values=values), start, 25, 1e-4)
    assert sorted(codebook.tolist()) == [[0, 0], [1, 1], [8, 0]]


def test_fewer_vectors_than_words():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    codebook = k_means.fit(DenseVectors(values=values), 16, 25, generator())
    assert {tuple(word) for word in codebook.tolist()} == {(1, 2), (3, 4), (0, 0)}


def test_vectors_without_weight_are_ignored():
    values = torch.tensor([[1.0, 1.0], [50.0, 50.0], [2.0, 2.0]])
    vectors = DenseVectors(values=values, weights=torch.tensor([1.0, 0.0, 1.0]))
    codebook = k_means.fit(vectors, 2, 25, generator())
    assert sorted(codebook.tolist()) == [[1, 1], [2, 2]]


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_same_seed_gives_the_same_bits(dim):
    values = torch.randn(1 << 14, dim, generator=generator())
    vectors = DenseVectors(values=values, weights=torch.rand(1 << 14, dim, generator=generator(3)))
    first = k_means.fit(vectors, 16, 25, generator(1))
    assert torch.equal(first, k_means.fit(vectors, 16, 25, generator(1)))
    assert not torch.equal(first, k_means.fit(vectors, 16, 25, generator(2)))
