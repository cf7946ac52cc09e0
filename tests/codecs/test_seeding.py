"""k-means++: far vectors first, the best of a few drawn."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs.numerics import assignment, seeding
from reallm_compiler.codecs.numerics.seeding import seed_codebook
from reallm_compiler.codecs.numerics.vectors import DenseVectors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_seeding_prefers_what_is_far():
    values = torch.cat([torch.randn(500, 2, generator=generator()) * 0.01, torch.full((5, 2), 9.0)])
    for seed in range(10):
        codebook = seed_codebook(DenseVectors(values=values), 2, generator(seed))
        assert codebook.max() > 8


def mean_error(values, count, seeds):
    sample = DenseVectors(values=values)
    books = (seed_codebook(sample, count, generator(seed)) for seed in range(seeds))
    return sum(float(assignment.errors(values, None, book).mean()) for book in books) / seeds


def test_the_best_of_a_few_is_better_than_the_first(monkeypatch):
    values = torch.randn(2000, 2, generator=generator())
    best = mean_error(values, 16, 20)
    monkeypatch.setattr(seeding, "CANDIDATES", 1)
    assert best < 0.9 * mean_error(values, 16, 20)


@pytest.mark.parametrize("kind", ["none", "vector", "element"])
@pytest.mark.parametrize("count", [16, 600])
def test_words_are_distinct_vectors_of_the_sample(kind, count):
    values = torch.randn(2000, 3, generator=generator())
    shape = {"none": None, "vector": (2000,), "element": (2000, 3)}[kind]
    weights = None if shape is None else torch.rand(shape, generator=generator(1))
    codebook = seed_codebook(DenseVectors(values=values, weights=weights), count, generator(2))
    assert codebook.shape == (count, 3)
    assert len(codebook.unique(dim=0)) == count
    assert {tuple(word) for word in codebook.tolist()} <= {tuple(one) for one in values.tolist()}


@pytest.mark.parametrize("kind", ["vector", "element"])
def test_errors_across_words_are_those_of_the_slow_way(kind):
    values = torch.randn(50, 3, generator=generator())
    weights = torch.rand((50,) if kind == "vector" else (50, 3), generator=generator(1))
    codewords = torch.randn(4, 3, generator=generator(2))
    wide = weights if kind == "element" else weights[:, None]
    expected = [((values - word).square() * wide).sum(1) for word in codewords]
    torch.testing.assert_close(
        seeding._Across(values, weights).errors(codewords), torch.stack(expected)
    )
