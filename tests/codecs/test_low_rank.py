"""Factors: the best ones, their stored types, their signs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.gram import damped
from reallm_compiler.codecs.residuals import low_rank
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from tests.codecs.test_feedback import statistics

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(33, 100), (172, 64), (1, 7)])
@pytest.mark.parametrize("rank", [1, 7])
def test_svd_is_the_best_of_its_rank(shape, rank, gaussian):
    weight = gaussian(*shape)
    rank = min(rank, *shape)
    left, right = low_rank.truncated_svd(weight, rank, generator())
    rest = torch.linalg.svdvals(weight.double())[rank:]
    error = torch.linalg.norm(weight.double() - left.double() @ right.double())
    assert float(error) == pytest.approx(float(rest.square().sum().sqrt()), rel=1e-4, abs=1e-5)
    # The singular values are split evenly.
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


def test_randomised_svd_comes_near_the_best(gaussian, monkeypatch):
    weight = gaussian(200, 300) + 20 * gaussian(200, 1) @ gaussian(1, 300, seed=3) / 17
    best = torch.linalg.svdvals(weight)[8:].square().sum().sqrt()
    monkeypatch.setattr(low_rank, "EXACT_BELOW", 10)
    left, right = low_rank.truncated_svd(weight, 8, generator())
    error = torch.linalg.norm(weight - left @ right)
    assert 1 - 1e-5 < float(error / best) < 1.003
    again = low_rank.truncated_svd(weight, 8, generator())
    assert torch.equal(left, again[0])
    assert torch.equal(right, again[1])


def test_signs_are_fixed(gaussian):
    left, _ = low_rank.truncated_svd(gaussian(40, 30), 5, generator())
    other, _ = low_rank.truncated_svd(-gaussian(40, 30), 5, generator())
    peaks = left.gather(0, left.abs().argmax(0, keepdim=True))
    assert (peaks > 0).all()
    torch.testing.assert_close(left, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("rank", [3, "1/4"])
def test_battery(shape, dtype, rank, gaussian, plan_of, check_codec):
    plan = plan_of(
        residual={"kind": "low_rank", "rank": rank, "dtype": dtype},
        scales={"kind": "absmax"},
        quantizer={"kind": "normal_float", "bits": 3},
    )
    without = plan_of(scales={"kind": "absmax"}, quantizer={"kind": "normal_float", "bits": 3})
    weight = gaussian(*shape)
    error = check_codec(plan, weight).relative_error
    assert error <= max(check_codec(without, weight).relative_error * 1.02, 0.01)


def test_the_quantizer_sees_the_stored_factors(gaussian, plan_of, check_codec):
    weight = gaussian(48, 64)
    residual = {"kind": "low_rank", "rank": 40, "dtype": "int8"}
    plan = plan_of(residual=residual, quantizer={"kind": "none", "dtype": "float32"})
    # 8-bit factors are far off, and float32 values of what they leave repair it.
    assert check_codec(plan, weight).relative_error < 1e-6


def test_int8_is_symmetric_by_column_of_l1_and_row_of_l2(gaussian, plan_of):
    (params,) = plan_of(residual={"kind": "low_rank", "rank": 4, "dtype": "int8"}).residual
    weight = gaussian(20, 30)
    sections = low_rank.encode(params, weight, generator())
    exact = low_rank.truncated_svd(weight, 4, generator())
    for factor, role, dim in zip(exact, ("l1", "l2"), (0, 1), strict=True):
        assert sections[role].abs().amax(dim).tolist() == [127] * 4
        torch.testing.assert_close(
            sections[f"{role}_scales"].float(), factor.abs().amax(dim) / 127, rtol=1e-3, atol=0
        )
    left, right = low_rank.decode(params, sections, torch.float32)
    assert (left - exact[0]).abs().max() <= exact[0].abs().max() / 127
    assert (right - exact[1]).abs().max() <= exact[1].abs().max() / 127


def test_zero_starts_as_lora_does(gaussian, plan_of):
    (params,) = plan_of(residual={"kind": "low_rank", "rank": 16, "fit": "zero"}).residual
    sections = low_rank.encode(params, gaussian(50, 400), generator(3))
    assert not sections["l1"].any()
    assert float(sections["l2"].float().std()) == pytest.approx(1 / math.sqrt(1200), rel=0.05)
    again = low_rank.encode(params, gaussian(50, 400, seed=9), generator(3))
    assert torch.equal(sections["l2"], again["l2"])


def test_a_zero_matrix_has_zero_factors(plan_of, check_codec):
    for dtype in ("float16", "int8"):
        plan = plan_of(residual={"kind": "low_rank", "rank": 2, "dtype": dtype})
        assert check_codec(plan, torch.zeros(6, 9)).relative_error == 0


def test_overflow_is_refused(plan_of):
    (params,) = plan_of(residual={"kind": "low_rank", "rank": 1}).residual
    with pytest.raises(CodecError, match="overflow float16"):
        low_rank.encode(params, torch.full((2, 2), 1e12), generator())


@pytest.mark.parametrize("order", ["residual_first", "quantizer_first"])
def test_alternating_is_never_worse_than_one_round(order, gaussian, plan_of, check_codec):
    weight = gaussian(96, 128) + 3 * gaussian(96, 2, seed=1) @ gaussian(2, 128, seed=2)
    errors = {}
    for fit in ("svd", "alternating"):
        residual = {"kind": "low_rank", "rank": 4, "dtype": "float32"}
        plan = plan_of(
            residual=residual | {"fit": fit, "order": order},
            scales={"kind": "absmax"},
            quantizer={"kind": "normal_float", "bits": 2},
        )
        errors[fit] = check_codec(plan, weight).relative_error
    assert errors["alternating"] < errors["svd"]


def test_the_loop_ends_when_the_error_rises_and_keeps_the_best(gaussian, plan_of, monkeypatch):
    from reallm_compiler.codecs import encode_matrix, matrix_encoder

    errors = iter([0.5, 0.4, 0.45])
    measured = []

    def relative_error(weight, reader):
        measured.append(next(errors))
        return measured[-1]

    monkeypatch.setattr(matrix_encoder, "relative_error", relative_error)
    plan = plan_of(
        residual={"kind": "low_rank", "rank": 2, "fit": "alternating"},
        scales={"kind": "absmax"},
        quantizer={"kind": "normal_float", "bits": 2},
    )
    encode_matrix(plan, gaussian(16, 64), seed=0, source_dtype="f32")
    assert measured == [0.5, 0.4, 0.45]  # the third round is worse, and the last


def test_factors_in_the_metric_of_the_inputs_make_the_outputs_best(gaussian):
    """By the singular values of W C: the sum of squares that a rank of r leaves."""
    weight = gaussian(30, 20).double()
    x = gaussian(200, 20, seed=1).double() * torch.logspace(0, -2, 20)
    gram = x.t() @ x / 200
    left, right = low_rank.weighted_svd(weight, 5, gram, generator())
    error = weight - left @ right
    plain = torch.sub(weight, torch.matmul(*low_rank.truncated_svd(weight, 5, generator())))
    root = torch.linalg.cholesky(damped(gram, low_rank.DAMPING))
    least = torch.linalg.svdvals(weight @ root)[5:].square().sum()
    metric = root @ root.t()
    assert ((error @ metric) * error).sum() == pytest.approx(float(least))
    assert ((error @ gram) * error).sum() < 0.5 * ((plain @ gram) * plain).sum()


@pytest.mark.parametrize("fit", ["svd", "alternating"])
def test_a_plan_in_the_metric_of_the_inputs(fit, gaussian, plan_of):
    weight = gaussian(16, 24)
    x = gaussian(100, 24, seed=1) * torch.logspace(0, -1.5, 24)
    given = MatrixStatistics(
        inputs=x.t() @ x / 100,
        mean_abs=x.abs().mean(0),
        count=100,
    )
    costs = {}
    for metric in ("weights", "inputs"):
        plan = plan_of(
            residual={"kind": "low_rank", "rank": 4, "metric": metric, "fit": fit},
            scales={"kind": "absmax", "per": "column"},
            quantizer={"kind": "uniform", "bits": 2},
        )
        assert plan.needs_statistics == (metric == "inputs")
        encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given)
        decoded = decode_matrix(plan, (16, 24), "f32", encoded.sections, dtype=torch.float32)
        costs[metric] = float(((weight - decoded) @ x.t()).square().sum())
    assert costs["inputs"] < 0.8 * costs["weights"]


def test_the_fisher_metric_weighs_rows_and_columns(gaussian, plan_of):
    """As LQ-LoRA has it: the SVD of D_row W D_col, undone; of single gradients, not of moments."""
    weight = gaussian(20, 30)
    g, x = gaussian(500, 20, seed=1), gaussian(500, 30, seed=2)
    g, x = g * torch.logspace(-1, 1, 20), x * torch.logspace(1, -1, 30)
    fisher = torch.einsum("ti,tj->ij", g.square(), x.square()).double() / 500
    given = MatrixStatistics(
        inputs=x.t() @ x / 500,
        weighted_inputs=(x * g.square().sum(1, keepdim=True)).t() @ x / 500,
        outputs=g.t() @ g / 500,
        weighted_outputs=((g * x.square().sum(1, keepdim=True)).t() @ g / 500).diagonal(),
        energy=1.0,
        mean_abs=x.abs().mean(0),
        count=500,
    )
    residual = {"kind": "low_rank", "rank": 3, "dtype": "float32", "metric": "fisher"}
    zero = {"kind": "uniform", "bits": 1}  # of a matrix of zeros: what is measured is the residual
    plan = plan_of(residual=residual, scales={"kind": "absmax", "per": "tensor"}, quantizer=zero)
    found = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given).sections
    product = (found["l1"] @ found["l2"]).double()
    rho, kappa = fisher.mean(1).sqrt(), fisher.mean(0).sqrt()
    u, s, vt = torch.linalg.svd(rho[:, None] * weight.double() * kappa)
    best = (u[:, :3] * s[:3]) @ vt[:3] / rho[:, None] / kappa

    def cost(approximation):
        return float((rho[:, None] * (weight - approximation) * kappa).square().sum())

    plain = low_rank.truncated_svd(weight, 3, generator())
    assert cost(product) < 1.01 * cost(best)
    assert cost(product) < 0.9 * cost(plain[0] @ plain[1])
    bare = replace(given, weighted_inputs=None, weighted_outputs=None)
    with pytest.raises(CodecError, match="needs gradients"):
        encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=bare)


def test_in_the_fisher_metric_the_loop_ends_when_its_own_error_rises(gaussian, plan_of):
    weight = gaussian(24, 40)
    errors = []
    for fit in ("svd", "alternating"):
        residual = {"kind": "low_rank", "rank": 4, "metric": "fisher", "fit": fit}
        scales, quantizer = {"kind": "absmax", "block": 20}, {"kind": "uniform", "bits": 2}
        plan = plan_of(residual=residual, scales=scales, quantizer=quantizer)
        given = statistics()
        found = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given).sections
        decoded = decode_matrix(plan, (24, 40), "f32", found, dtype=torch.float64)
        assert given.weighted_outputs is not None
        assert given.weighted_inputs is not None
        rows, columns = given.weighted_outputs.diagonal(), given.weighted_inputs.diagonal()
        errors.append(float(((weight - decoded).square() * rows[:, None] * columns).sum()))
    assert errors[1] < 0.95 * errors[0]
