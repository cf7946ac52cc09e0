"""The survey's statistics against slow numpy, and on matrices whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from reallm_compiler.evaluate.spectrum import FRACTIONS, noise_share, spectrum
from reallm_compiler.evaluate.statistics import (
    block_scales,
    line_squares,
    neighbours,
    outliers,
    relative_total,
    structure_bits,
)
from tests.evaluate.samples import image, noise

SAMPLES = {
    "noise": noise(0, 24, 40),
    "tall": noise(1, 50, 17),
    "off centre": noise(2, 24, 40) + 3,
    "image": image(20, 31),
    "columns of their own": noise(3, 30, 20) + 2 * noise(4, 1, 20),
    "bfloat16": noise(5, 24, 40).to(torch.bfloat16),
    "transposed": noise(6, 24, 40).t(),
    "one row": noise(7, 1, 40),
}
samples = pytest.mark.parametrize("weight", SAMPLES.values(), ids=SAMPLES)


@samples
def test_singular_values_are_those_of_the_svd(weight):
    found = spectrum(weight)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    assert found.values == pytest.approx(values.tolist(), rel=1e-6, abs=1e-6 * values[0])
    parts = values / values.sum()
    entropy = -sum(part * math.log(part) for part in parts if part > 1e-7)
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-4)
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    p, q = weight.shape
    for part, fraction in zip(found.low_rank, FRACTIONS, strict=True):
        assert (part.fraction, part.rank) == (fraction, max(1, int(min(p, q) * fraction)))
        share = (values[: part.rank] ** 2).sum() / (values**2).sum()
        assert part.share == pytest.approx(share)
        if share < 0.999:
            saved = -0.5 * math.log2(1 - share)
            assert part.net_bits == pytest.approx(saved - 16 * part.rank * (p + q) / (p * q))


@pytest.mark.parametrize("shape", [(96, 96), (64, 192), (192, 48)])
def test_the_share_of_noise_is_what_noise_has(shape):
    for part in spectrum(noise(0, *shape)).low_rank[2:]:
        assert part.noise_share == pytest.approx(part.share, abs=0.02)


def test_the_share_of_noise_at_the_ends():
    assert noise_share(100, 100, 100) == pytest.approx(1)
    assert noise_share(64, 10**9, 32) == pytest.approx(0.5, abs=1e-3)
    assert noise_share(64, 64, 1) > noise_share(64, 128, 1) > 1 / 64


@samples
def test_moments_are_those_of_numpy(weight):
    found = outliers(weight)
    values = weight.double().numpy()
    deviation = (values - values.mean()) / values.std()
    assert found.rms == pytest.approx(math.sqrt((values**2).mean()))
    assert found.kurtosis == pytest.approx((deviation**4).mean())
    assert found.max_over_rms == pytest.approx(abs(values).max() / math.sqrt((values**2).mean()))
    assert found.beyond == pytest.approx((abs(deviation) > 4).mean())


def test_outliers_are_seen():
    weight = noise(0, 64, 64)
    weight[3, 5] = 100.0
    found = outliers(weight)
    assert found.beyond == pytest.approx(1 / 4096)
    assert found.kurtosis > 1000
    assert found.max_over_rms > 50


def slow_correlation(values, order):
    """Mean product of adjacent rows in this order, over the variance."""
    lines = (values - values.mean())[order]
    return np.mean([lines[i] @ lines[i + 1] for i in range(len(lines) - 1)]) / (
        lines.shape[1] * values.var()
    )


@samples
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_neighbours_are_those_of_a_slow_count(weight, axis):
    found = neighbours(weight)[axis]
    values = weight.double().numpy()
    values = values if axis == 0 else values.T
    p, q = values.shape
    if p == 1:
        assert (found.correlation, found.ordered, found.z) == (0, 0, 0)
        return
    assert found.correlation == pytest.approx(slow_correlation(values, np.arange(p)))
    lines = values - values.mean()
    products = [lines[i] @ lines[j] / q for i in range(p) for j in range(p) if i != j]
    assert found.shuffled == pytest.approx(np.mean(products) / values.var())
    extra = found.correlation - found.shuffled
    assert found.ordered == pytest.approx(extra / (1 - found.shuffled))
    if q > 1:
        lines = lines - lines.mean(axis=0)  # what all lines share stays in any order
        products = [lines[i] @ lines[j] / q for i in range(p) for j in range(p) if i != j]
        deviation = np.std(products) / math.sqrt(p - 1) / values.var()
        assert found.z == pytest.approx(extra / deviation, rel=1e-6)


@pytest.mark.parametrize("name", ["noise", "image", "columns of their own"])
def test_z_is_in_deviations_of_a_random_order(name):
    values = SAMPLES[name].double().numpy()
    random = np.random.default_rng(0)
    drawn = [slow_correlation(values, random.permutation(len(values))) for _ in range(400)]
    found = neighbours(SAMPLES[name])[0]
    deviation = (found.correlation - found.shuffled) / found.z
    assert np.mean(drawn) == pytest.approx(found.shuffled, abs=4 * deviation / 20)
    assert np.std(drawn) == pytest.approx(deviation, rel=0.3)


def test_order_is_what_counts():
    weight = image(96, 160)
    rows, columns = neighbours(weight)
    assert rows.ordered > 0.95
    assert columns.ordered > 0.95
    order = torch.Generator().manual_seed(0)
    mixed = weight[torch.randperm(96, generator=order)][:, torch.randperm(160, generator=order)]
    assert structure_bits(rows, columns) > 3
    assert structure_bits(*neighbours(mixed)) == 0
    assert neighbours(mixed)[0].shuffled == pytest.approx(rows.shuffled)


def test_what_all_rows_share_is_no_order():
    rows, columns = neighbours(SAMPLES["columns of their own"])
    assert rows.correlation > 0.5
    assert abs(rows.ordered) < 0.1
    assert structure_bits(rows, columns) == 0
    assert structure_bits(*neighbours(noise(0, 1, 20).expand(30, 20))) == 0


def slow_spread(values, block):
    means = [
        np.mean(row[at : at + block] ** 2) for row in values for at in range(0, len(row), block)
    ]
    return np.log2(means).std() / 2


@pytest.mark.parametrize("q", [128, 100, 40], ids=["whole", "ragged", "short"])
def test_block_scales_are_those_of_a_slow_count(q):
    weight = noise(0, 24, q) * (1 + torch.arange(q) % 7)
    assert block_scales(weight).spread == pytest.approx(slow_spread(weight.double().numpy(), 64))


def test_noise_has_the_block_scales_of_noise():
    found = block_scales(noise(0, 256, 256))
    assert found.spread == pytest.approx(found.noise_spread, rel=0.1)


def test_mean_squares_of_lines_are_those_of_numpy():
    weight = noise(0, 37, 53)
    rows, columns = line_squares(weight)
    squares = weight.double().numpy() ** 2
    assert rows.numpy() == pytest.approx(squares.mean(axis=1))
    assert columns.numpy() == pytest.approx(squares.mean(axis=0))


def test_zeros_are_no_mistake():
    nothing = torch.zeros(6, 8)
    assert spectrum(nothing).low_rank == ()
    assert outliers(nothing).kurtosis == 0
    assert block_scales(nothing).spread == 0
    assert structure_bits(*neighbours(nothing)) == 0


def test_errors_add_up_as_norms():
    assert relative_total([0.5, 0.1], [2, 1]) == pytest.approx(math.sqrt(1.01 / 5))
    assert relative_total([], []) == 0


def test_fractions_are_exact():
    assert list(FRACTIONS) == [Fraction(1, n) for n in (64, 32, 16, 8, 4, 2)]
