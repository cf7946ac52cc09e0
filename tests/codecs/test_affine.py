"""Integer zero points: w = s (c - z), with zero a level of the grid."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.affine import integer_zeros
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.stages import MatrixPlan

ROUNDINGS = {"nearest": {"kind": "nearest"}, "feedback": {"kind": "feedback", "sides": "input"}}


def plan_of(bits, symmetric=False, rounding="nearest", **scales):
    return MatrixPlan.model_validate(
        {
            "scales": {"kind": "affine", "code_bits": bits, "symmetric": symmetric}
            | {"per": "block", "block": 8, "dtype": "float16"}
            | scales,
            "quantizer": {"kind": "uniform", "bits": bits},
            "rounding": ROUNDINGS[rounding],
        }
    )


def statistics_of(columns, seed=3):
    inputs = torch.randn(4 * columns, columns, generator=torch.Generator().manual_seed(seed))
    inputs[:, 1:] += 0.7 * inputs[:, :-1]
    return MatrixStatistics(
        inputs=inputs.T @ inputs / len(inputs),
        mean_abs=inputs.abs().mean(0),
        count=len(inputs),
    )


def coded(plan, weight, **given):
    sections = encode_matrix(plan, weight, seed=1, source_dtype="f32", **given).sections
    shape = (weight.shape[0], weight.shape[1])
    return sections, decode_matrix(plan, shape, "f32", sections, dtype=torch.float32)


def parts(plan, sections, shape):
    """Codes [p, q], and z and s of each weight."""
    p, q = shape
    bits, block = plan.quantizer.bits, plan.scales.block
    codes = unpack(sections["codes"], bits, p * q).view(p, q).float()
    zeros = integer_zeros(plan.scales, sections, p * q // block)
    return codes, *(
        values.float().repeat_interleave(block).view(p, q) for values in (zeros, sections["scales"])
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_of_the_grid_come_back_to_the_bit(symmetric, bits):
    """Every group reaches both ends of its range, so the grid can be found again."""
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (12, 4, 8), generator=draw)
    codes[:, :, 0], codes[:, :, 1] = 0, 2**bits - 1
    zero = torch.randint(0, 2**bits, (12, 4, 1), generator=draw)
    step = torch.rand(12, 4, 1, generator=draw).add(0.5).half()
    if symmetric:  # the largest magnitude is (2^bits - 1) / 2 steps: half a step is never a code
        zero = torch.full_like(zero, 2 ** (bits - 1))
        step = step.mul(2).div(2**bits - 1).half()
        weight = (step.float() * (codes - zero)).view(12, 32)
        plan = plan_of(bits, symmetric, dtype="float32")
        sections, decoded = coded(plan, weight)
        found, z, s = parts(plan, sections, (12, 32))
        assert set(z.view(-1).tolist()) == {2.0 ** (bits - 1)}
        assert torch.equal(decoded, s * found - s * z)
        return
    weight = (step.float() * (codes - zero)).view(12, 32)
    plan = plan_of(bits, symmetric)
    sections, decoded = coded(plan, weight)
    assert torch.equal(decoded, weight)
    found, z, s = parts(plan, sections, (12, 32))
    assert torch.equal(found, codes.view(12, 32).float())
    assert torch.equal(z, zero.float().expand(12, 4, 8).reshape(12, 32))
    assert torch.equal(s, step.float().expand(12, 4, 8).reshape(12, 32))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_decoded_weights_are_step_times_code_less_zero(symmetric, bits, rounding, gaussian):
    """Exact with float16 steps: what another format holds decodes to the same numbers."""
    plan = plan_of(bits, symmetric, rounding)
    sections, decoded = coded(plan, gaussian(12, 32), statistics=statistics_of(32))
    codes, zero, step = parts(plan, sections, (12, 32))
    assert torch.equal(decoded, step * (codes - zero))
    assert float((decoded - gaussian(12, 32)).abs().max()) < float(step.max()) * 2**bits


@pytest.mark.parametrize("symmetric", [False, True])
def test_steps_and_zero_points_by_the_formula(symmetric, gaussian):
    weight = gaussian(6, 16) + 0.5
    plan = plan_of(4, symmetric, dtype="float32")
    sections, _ = coded(plan, weight)
    groups = weight.view(-1, 8)
    least, largest = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    if symmetric:
        largest = torch.maximum(largest, -least)
        least = -largest
    step = (largest - least) / 15
    torch.testing.assert_close(sections["scales"], step)
    expected = torch.full((12,), 8.0) if symmetric else (-least / step).round()
    assert torch.equal(integer_zeros(plan.scales, sections, 12).float(), expected)
    assert ("zeros" in sections) is not symmetric


def test_feedback_chooses_groups_anew_and_errs_less(gaussian):
    weight, statistics = gaussian(24, 64), statistics_of(64)
    costs = {}
    for rounding in ROUNDINGS:
        _, decoded = coded(plan_of(3, rounding=rounding), weight, statistics=statistics)
        error = decoded - weight
        costs[rounding] = float((error @ statistics.inputs * error).sum())
    assert costs["feedback"] < 0.7 * costs["nearest"]


def test_zeros_stay_zeros_and_a_zero_is_a_level(gaussian, check_codec):
    weight = gaussian(4, 16) + 3
    weight[1] = 0
    weight[2, 3] = 0
    for bits, symmetric in ((2, False), (4, True), (4, False)):
        check_codec(plan_of(bits, symmetric), weight)
        _, decoded = coded(plan_of(bits, symmetric), weight)
        assert not decoded[1].any()
        assert decoded[2, 3] == 0


def test_codes_of_another_width_are_refused():
    with pytest.raises(
        ValueError, match="`code_bits: 3` of the `affine` scales must be the `bits`"
    ):
        MatrixPlan.model_validate(
            {
                "scales": {"kind": "affine", "code_bits": 3},
                "quantizer": {"kind": "uniform", "bits": 4},
            }
        )
    with pytest.raises(ValueError, match="do not lie where `affine` scales put"):
        MatrixPlan.model_validate(
            {
                "scales": {"kind": "affine", "code_bits": 4},
                "quantizer": {"kind": "normal_float", "bits": 4},
            }
        )
