"""The additive quantizer: sums of codewords, their search and what they lose."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.codecs.numerics import k_means
from reallm_compiler.codecs.numerics.assignment import assign
from reallm_compiler.codecs.numerics.sums import fit_books, nearest_sums, sums
from reallm_compiler.codecs.numerics.vectors import DenseVectors
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.conftest import RAGGED

ROWS = {"kind": "rms", "per": "row", "dtype": "float16"}
SMALL = {"kind": "additive", "codebooks": 2, "code_bits": 3, "dim": 4, "iterations": 5}


@pytest.mark.parametrize("fields", [{}, {"codebooks": 3, "dtype": "float16"}, {"dim": 3}])
@pytest.mark.parametrize("shape", RAGGED)
def test_battery(shape, fields, gaussian, plan_of, check_codec):
    check_codec(plan_of(scales=ROWS, quantizer=SMALL | fields), gaussian(*shape))


def test_one_codebook_is_the_vector_quantizer(gaussian, plan_of):
    weight = gaussian(64, 96)
    vq = {"kind": "vq", "bits": 1, "dim": 4, "axis": "cols"}
    one = {"kind": "additive", "codebooks": 1, "code_bits": 4, "dim": 4}
    expected, found = (
        encode_matrix(plan_of(scales=ROWS, quantizer=q), weight, seed=3, source_dtype="f32")
        for q in (vq, one)
    )
    assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-6)
    assert torch.equal(found.sections["codes"], expected.sections["codes"])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_wide_beam_finds_the_nearest_sum(weighted, gaussian):
    values, books = gaussian(40, 3), gaussian(3, 4, 3, seed=1)
    weights = gaussian(40, 3, seed=2).square() + 0.1 if weighted else None
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    all_sums = sums(books, every)
    cost = torch.ones_like(values) if weights is None else weights
    errors = ((values[:, None] - all_sums).square() * cost[:, None]).sum(2)  # [40, 64]
    found = nearest_sums(values, weights, books, 16)
    assert torch.equal(found, every[errors.argmin(1)])
    narrow = sums(books, nearest_sums(values, weights, books, 1))
    lost = ((values - narrow).square() * cost).sum() / errors.min(1).values.sum()
    assert 1 < float(lost) < 4


def test_codebooks_that_are_fitted_together_lose_less(gaussian):
    vectors = DenseVectors(values=gaussian(4000, 4))
    rest, single = vectors.values, []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        book = k_means.fit(DenseVectors(values=rest), 8, 20, generator)
        rest = rest - book[assign(rest, None, book)]
        single.append(book)
    books = fit_books(vectors, 2, 8, 4, 20, torch.Generator().manual_seed(0))

    def loss(given):
        found = sums(given, nearest_sums(vectors.values, None, given, 4))
        return float((vectors.values - found).square().mean())

    assert loss(books) < 0.97 * loss(torch.stack(single)) < 0.97 * float(rest.square().mean())


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        ({"codebooks": 2, "code_bits": 8, "dim": 8}, 2 + 2 * 256 * 8 * 8 / 2**24),
        ({"codebooks": 1, "code_bits": 16, "dim": 8, "dtype": "float16"}, 2 + 0.5),
    ],
)
def test_bits_of_the_published_settings(quantizer, bits, plan_of):
    plan = plan_of(scales=ROWS, quantizer={"kind": "additive", **quantizer})
    layout = layout_of(plan, (4096, 4096), "bf16")
    stored = 8 * sum(spec.nbytes for spec in layout.sections) - 16 * 4096
    assert stored / 4096**2 == pytest.approx(bits, abs=1e-5)


def test_a_group_has_its_codebooks_once(gaussian, plan_of):
    plan = plan_of(scales=ROWS, quantizer=SMALL, share="g")
    weights = [gaussian(32, 48), gaussian(16, 48, seed=1)]
    shared = fit_shared([plan] * len(weights), weights, seed=4)
    assert set(shared) == {"codebook", "codebook_scale"}
    for weight in weights:
        found = encode_matrix(plan, weight, seed=1, source_dtype="f32", shared=shared)
        assert found.relative_error < 0.5
        assert set(found.sections) == {"scales", "codes"}
