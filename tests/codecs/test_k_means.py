"""k-means: the nearest codeword, the published errors, weights and empty clusters."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import k_means
from reallm_compiler.codecs.k_means import DenseVectors


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
@pytest.mark.parametrize(("dim", "words"), [(1, 4), (1, 256), (2, 16), (4, 256), (5, 2), (2, 4096)])
def test_assignment_is_the_nearest_codeword(kind, dim, words):
    values = torch.randn(500, dim, generator=generator())
    codebook = torch.randn(words, dim, generator=generator(1))
    if dim == 1:
        codebook = codebook.sort(dim=0).values
    weights = weights_of(kind, 500, dim)
    nearest = k_means.assign(values, weights, codebook)
    errors = slow_errors(values, weights, codebook)
    chosen = errors.gather(1, nearest[:, None])[:, 0]
    assert (chosen <= errors.amin(1) + 1e-5).all()


def test_blocks_of_words_join_without_a_seam(monkeypatch):
    values = torch.randn(300, 3, generator=generator())
    codebook = torch.randn(100, 3, generator=generator(1))
    whole = k_means.assign(values, None, codebook)
    monkeypatch.setattr(k_means, "WORD_BLOCK", 7)
    assert torch.equal(k_means.assign(values, None, codebook), whole)


@pytest.mark.parametrize("words", [3, 16])
def test_ties_go_to_the_lowest_index(words, monkeypatch):
    monkeypatch.setattr(k_means, "WORD_BLOCK", 4)
    codebook = torch.ones(words, 2)
    assert k_means.assign(torch.randn(5, 2), None, codebook).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("dim", "bits", "mse"),
    [(1, 2, 0.118), (1, 3, 0.0345), (2, 2, 0.1087), (2, 3, 0.0301), (4, 2, 0.0958)],
)
def test_published_errors_on_normal_vectors(dim, bits, mse):
    values = torch.randn(1 << 18, generator=generator()).view(-1, dim)
    vectors = DenseVectors(values=values)
    codebook = k_means.fit(vectors, 2 ** (bits * dim), 25, generator(1))
    error = k_means._errors(values, None, codebook).sum() / values.numel()
    assert float(error) <= mse * 1.01
    assert float(error) >= mse * 0.98


def test_lloyd_never_ends_worse_than_it_began():
    vectors = DenseVectors(values=torch.randn(4000, 2, generator=generator()))
    start = k_means.seed_codebook(vectors, 16, generator(2))
    before = float(k_means._errors(vectors.values, None, start).sum())
    last = before
    for iterations in (1, 2, 5, 20):
        codebook, _ = k_means.lloyd(vectors, start, iterations, 1e-4)
        error = float(k_means._errors(vectors.values, None, codebook).sum())
        assert error <= last * 1.002
        last = min(last, error)
    assert last < before * 0.9


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


def test_seeding_prefers_what_is_far():
    values = torch.cat([torch.randn(500, 2, generator=generator()) * 0.01, torch.full((5, 2), 9.0)])
    for seed in range(10):
        codebook = k_means.seed_codebook(DenseVectors(values=values), 2, generator(seed))
        assert codebook.max() > 8


def test_sums_by_word_are_the_same_in_sorted_runs():
    values = torch.randn(400, 3, generator=generator())
    nearest = torch.randint(10, (400,), generator=generator(1))
    expected = torch.zeros(12, 3, dtype=torch.float64).index_add_(0, nearest, values.double())
    torch.testing.assert_close(k_means.sums_by_word(values, nearest, 12), expected)
    torch.testing.assert_close(k_means._sums_of_runs(values, nearest, 12), expected)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_same_seed_gives_the_same_bits(dim):
    values = torch.randn(1 << 14, dim, generator=generator())
    vectors = DenseVectors(values=values, weights=torch.rand(1 << 14, dim, generator=generator(3)))
    first = k_means.fit(vectors, 16, 25, generator(1))
    assert torch.equal(first, k_means.fit(vectors, 16, 25, generator(1)))
    assert not torch.equal(first, k_means.fit(vectors, 16, 25, generator(2)))
