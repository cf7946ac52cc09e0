"""Factors of the columns by the size of their inputs (AWQ), against a plain search."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.contract import Trial
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan
from tests.codecs.size_law import some_statistics

LATER = {
    "scales": {"kind": "affine", "code_bits": 3, "block": 8},
    "quantizer": {"kind": "uniform", "bits": 3},
}


def plan_of(later=LATER, **scale):
    return MatrixPlan.model_validate({"transform": [{"kind": "channel_scale", **scale}], **later})


def uneven(columns, seed=1):
    """Inputs of which a few are far larger than the rest."""
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8 * columns, columns, generator=made)
    inputs *= torch.exp(1.2 * torch.randn(columns, generator=made))
    inputs[:, 1:] += 0.5 * inputs[:, :-1]
    return MatrixStatistics(
        inputs=inputs.T @ inputs / len(inputs),
        mean_abs=inputs.abs().mean(0),
        count=len(inputs),
    )


def coded(plan, weight, statistics):
    given = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=statistics)
    shape = (weight.shape[0], weight.shape[1])
    return given.sections, decode_matrix(plan, shape, "f32", given.sections, dtype=torch.float32)


def cost(error, statistics):
    return float((error.double() @ statistics.inputs.double() * error.double()).sum())


def plain_rounding(matrix):
    """3 bits for blocks of 8 by the formulas."""
    blocks = matrix.view(-1, 8)
    least, largest = blocks.amin(1, True).clamp(max=0), blocks.amax(1, True).clamp(min=0)
    step = (largest - least) / 7
    zero = (-least / step).round().clamp(0, 7)
    return (step * ((blocks / step + zero).round().clamp(0, 7) - zero)).view(matrix.shape)


def plain_factors(weight, size, alpha, by):
    factors = size.double() ** alpha
    if by == "both":
        factors = factors / (weight.abs().double().mean(0) ** (1 - alpha) + 1e-4)
    factors = factors.clamp(min=1e-4)
    return factors / (factors.max() * factors.min()).sqrt()


@pytest.mark.parametrize("by", ["inputs", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_the_exponent_is_that_of_a_plain_search(seed, by, gaussian):
    """The same grid, and the factors of the winner to float16."""
    weight, statistics = gaussian(24, 32, seed=seed), uneven(32, seed)
    costs = []
    for step in range(20):
        factors = plain_factors(weight, statistics.mean_abs, step / 20, by)
        inverse = (1 / factors).half().float()
        costs.append(cost(plain_rounding(weight / inverse) * inverse - weight, statistics))
    best = costs.index(min(costs))
    sections, decoded = coded(plan_of(by=by), weight, statistics)
    expected = 1 / plain_factors(weight, statistics.mean_abs, best / 20, by)
    torch.testing.assert_close(sections["channel_scale"], expected.half(), rtol=2e-3, atol=0)
    assert cost(decoded - weight, statistics) == pytest.approx(min(costs), rel=1e-3)
    assert 0 < best < 19 or by == "both"
    rounded = cost(plain_rounding(weight) - weight, statistics)
    assert min(costs) < (0.9 if by == "inputs" else 1) * rounded


def test_an_exponent_of_zero_is_rounding_to_nearest(gaussian):
    weight, statistics = gaussian(12, 16), uneven(16)
    sections, decoded = coded(plan_of(alpha=0), weight, statistics)
    assert set(sections.pop("channel_scale").tolist()) == {1.0}
    plain = MatrixPlan.model_validate(LATER)
    expected, values = coded(plain, weight, None)
    assert torch.equal(decoded, values)
    assert all(torch.equal(sections[role], expected[role]) for role in expected)


@pytest.mark.parametrize("by", ["inputs", "both"])
def test_without_a_quantizer_the_matrix_comes_back(by, gaussian):
    weight = gaussian(12, 16)
    plan = plan_of({"quantizer": {"kind": "none"}}, alpha="1/2", by=by)
    _, decoded = coded(plan, weight, uneven(16))
    torch.testing.assert_close(decoded, weight, rtol=3e-7, atol=0)


def test_it_acts_on_activations_and_gram_matrices(gaussian):
    """W x = T(W) x', E[x' x'^T] is the Gram matrix, and outputs stay."""
    weight, statistics = gaussian(12, 16).double(), uneven(16)
    params = plan_of(alpha="1/2").transform[0]
    codec = codec_of(params)
    trial = Trial(statistics=statistics, coded=torch.clone)
    sections, moved = codec.encode(params, weight.clone(), trial)
    transform = codec.decoder(params, (12, 16), sections, torch.float64)
    x = gaussian(5, 16).double()
    inner = transform.inputs(x)
    torch.testing.assert_close(transform.outputs(inner @ moved.T), x @ weight.T)
    torch.testing.assert_close(transform.gram(x.T @ x), inner.T @ inner)
    gradients = gaussian(5, 12).double()
    assert torch.equal(transform.gradients(gradients), gradients)
    torch.testing.assert_close(transform.restore_(moved, 0), weight)
    factors, outputs = transform.mixing()
    torch.testing.assert_close(x * factors.factors, inner)
    assert (outputs.factors, outputs.block) == (None, 1)


def test_feedback_after_it_works_in_the_moved_metric(gaussian):
    weight, statistics = gaussian(24, 32), uneven(32)
    feedback = {"rounding": {"kind": "feedback", "sides": "input", "damping": "1/100"}}
    costs = {
        name: cost(coded(plan, weight, statistics)[1] - weight, statistics)
        for name, plan in {
            "scaled": plan_of(alpha="1/2"),
            "scaled with feedback": plan_of({**LATER, **feedback}, alpha="1/2"),
        }.items()
    }
    assert costs["scaled with feedback"] < 0.8 * costs["scaled"]


def test_inputs_of_unknown_magnitude_are_taken_by_their_moments(gaussian):
    """A rotated model has no E|x|; and inputs that are always zero leave the rest as it is."""
    statistics = uneven(16)
    inputs = statistics.inputs.clone()
    inputs[3] = inputs[:, 3] = 0
    given = MatrixStatistics(
        inputs=inputs,
        mean_abs=None,
        count=1,
    )
    sections, decoded = coded(plan_of(alpha="1/2"), gaussian(12, 16), given)
    sizes = inputs.diagonal().sqrt().clamp(min=1e-8)
    expected = 1 / plain_factors(gaussian(12, 16), sizes, 0.5, "inputs")
    torch.testing.assert_close(sections["channel_scale"], expected.half(), rtol=2e-3, atol=0)
    assert torch.isfinite(decoded).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {
                "share": "g",
                "scales": {"kind": "none"},
                "quantizer": {"kind": "vq", "bits": 1, "dim": 2},
            },
            "does not go with `share`",
        ),
        (
            {"transform": [{"kind": "hadamard"}, {"kind": "channel_scale"}]},
            "must be the first of the list",
        ),
        ({"transform": [{"kind": "channel_scale", "alpha": "5/4"}]}, "between 0 and 1"),
        (
            {"autoencoder": {"kind": "hnerv", "patch": 4, "latent": [1, 2, 2], "width": 1}},
            "`channel_scale` transform needs the matrix itself",
        ),
    ],
)
def test_what_does_not_go_with_it(change, reason):
    with pytest.raises(ValueError, match=reason):
        MatrixPlan.model_validate({"transform": [{"kind": "channel_scale"}], **LATER, **change})


def test_a_matrix_with_folded_factors_is_coded_as_it_is(gaussian):
    """It has been multiplied before: `tests/prepare/test_folding.py` has whole models."""
    weight, statistics = gaussian(12, 16), uneven(16)
    sections, decoded = coded(plan_of(alpha="1/2", fold=True), weight, statistics)
    expected, values = coded(MatrixPlan.model_validate(LATER), weight, None)
    assert torch.equal(decoded, values)
    assert sections.keys() == expected.keys()


def test_it_needs_statistics(gaussian):
    with pytest.raises(CodecError, match="needs the statistics of the matrix's inputs"):
        encode_matrix(plan_of(), gaussian(4, 8), seed=1, source_dtype="f32")
    some = some_statistics((4, 8), 1)
    first, again = (coded(plan_of(), gaussian(4, 8), some)[0] for _ in range(2))
    assert all(torch.equal(first[role], again[role]) for role in first)
