"""The monarch residual: what it can hold is held exactly, and the projection is the nearest."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs.residuals.monarch import factors
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.conftest import RAGGED


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Two block-diagonal matrices and the permutation between them, for p and q that k divides."""
    (p, k), q = left.shape, right.shape[1]
    first = torch.block_diag(*right.view(k, k, q // k).unbind(1))  # R': [k blocks of k, q]
    second = torch.block_diag(*left.view(p // k, k, k).unbind(1))  # L': [k blocks of p / k, k k]
    swap = torch.arange(k * k).view(k, k).t().reshape(-1)
    rows = torch.arange(p).view(k, p // k).t().reshape(-1)
    return (second @ first[swap])[rows]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("shape", RAGGED)
def test_battery(shape, dtype, gaussian, plan_of, check_codec):
    residual = {"kind": "monarch", "dtype": dtype}
    scales, quantizer = {"kind": "absmax"}, {"kind": "uniform", "bits": 3}
    check_codec(plan_of(residual=residual, scales=scales, quantizer=quantizer), gaussian(*shape))


@pytest.mark.parametrize(("p", "q", "k"), [(16, 16, 4), (12, 30, 3), (40, 8, 2)])
def test_a_monarch_matrix_is_held_exactly(p, q, k, gaussian):
    weight = product(gaussian(p, k), gaussian(k, q, seed=1))
    left, right = factors(weight, k, torch.Generator().manual_seed(0))
    assert torch.allclose(product(left, right), weight, atol=1e-5)


def test_it_is_the_nearest_of_random_ones(gaussian):
    """Alternating least squares from many starts comes no nearer."""
    weight = gaussian(9, 9).double()
    left, right = factors(weight, 3, torch.Generator().manual_seed(0))
    found = float((weight - product(left, right)).norm())
    for seed in range(5):
        one, other = gaussian(9, 3, seed=seed).double(), gaussian(3, 9, seed=seed + 9).double()
        for _ in range(60):
            for row in range(3):
                for column in range(3):
                    block = weight[row::3, 3 * column : 3 * column + 3]
                    v = other[row, 3 * column : 3 * column + 3]
                    u = block @ v / v.square().sum()
                    one[row::3, column] = u
                    other[row, 3 * column : 3 * column + 3] = block.t() @ u / u.square().sum()
        assert float((weight - product(one, other)).norm()) >= found - 1e-9


def test_as_many_numbers_as_a_low_rank_part_and_large_blocks(gaussian, plan_of, check_codec):
    plan = plan_of(residual={"kind": "monarch"}, quantizer={"kind": "none", "dtype": "float16"})
    residual = [s for s in layout_of(plan, (4096, 4096), "f32").sections if s.term == "residual"]
    assert sum(spec.nbytes for spec in residual) == 2 * 2 * 4096 * 64
    large = plan_of(
        residual={"kind": "monarch", "blocks": 1}, quantizer={"kind": "none", "dtype": "float32"}
    )
    weight = gaussian(300, 1) @ gaussian(1, 280, seed=1)
    assert check_codec(large, weight).relative_error < 1e-6
