"""Weights of any size: coded as well as others of their kind, or refused with a hint that works."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.codecs.numerics import numbers
from reallm_compiler.errors import CodecError
from reallm_compiler.recipe import load_recipe
from reallm_compiler.stages import MatrixPlan

FACTORS = (1e-36, 1e-30, 1e-20, 1e-12, 1e-8, 1e-5, 1e5, 1e12, 1e20, 1e30, 1e36)
SHAPE = (64, 128)
DATA_FREE = "reallm-4bit-data-free"


def plan_of(**stages):
    return MatrixPlan.model_validate(stages)


def coded(plan, weight, source_dtype="f32"):
    """The sections and the error of a matrix that is alone in its share group, if it has one."""
    shared = fit_shared([plan], [weight], seed=1) if plan.share is not None else None
    return encode_matrix(plan, weight, seed=1, source_dtype=source_dtype, shared=shared)


RECIPES = ("nf4", "qlora", "lq-lora", "rtn-4bit", "paper-2bit", "reallm-2bit-tunable", DATA_FREE)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_codes_weights_of_any_size_alike_or_refuses_them(name, gaussian):
    plan = load_recipe(name).plan
    if name == DATA_FREE:  # the same way with fewer states, which take less time
        quick = plan.quantizer.model_copy(update={"state_bits": 6, "iterations": 2})
        plan = plan.model_copy(update={"quantizer": quick})
    weight = gaussian(*SHAPE)
    ordinary = coded(plan, weight).relative_error
    refused = []
    for factor in FACTORS:
        try:
            error = coded(plan, weight * factor).relative_error
        except CodecError as problem:
            refused.append(problem)
        else:
            assert error <= 1.02 * ordinary + numbers.LOST
    assert all("overflow" in one.message or "too small" in one.message for one in refused)
    assert all(one.hint for one in refused)
    assert len(refused) < len(FACTORS)


TENSOR = {"kind": "rms", "per": "tensor"}
ABSMAX = {"kind": "absmax", "block": 32}
UNIFORM = {"kind": "uniform", "bits": 4}
VQ = {"kind": "vq", "bits": 2, "dim": 2}
TRELLIS = {"kind": "trellis", "bits": 2, "state_bits": 6}
BF16 = "bfloat16"

NARROW = {
    "scales": (
        {"scales": {**ABSMAX, "dtype": "float16"}, "quantizer": UNIFORM},
        {"scales": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "scales_super": (
        {"scales": {**ABSMAX, "dtype": "float16", "bits": 8}, "quantizer": UNIFORM},
        {"scales": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "zeros": (
        {"scales": {"kind": "minmax", "block": 32, "dtype": "float16"}, "quantizer": UNIFORM},
        {"scales": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "norm": (
        {
            "transform": [{"kind": "normalize", "bits": None, "dtype": "float16"}],
            "scales": TENSOR,
            "quantizer": VQ,
        },
        {"transform": [{"kind": "normalize", "bits": None, "dtype": "float32"}]},
        "`dtype: float32`",
    ),
    "factors": (
        {"residual": {"kind": "low_rank", "rank": 4}, "scales": TENSOR, "quantizer": VQ},
        {"residual": {"dtype": BF16}},
        "`bfloat16`",
    ),
    "factors in int8": (
        {
            "residual": {"kind": "low_rank", "rank": 4, "dtype": "int8"},
            "scales": TENSOR,
            "quantizer": VQ,
        },
        {"residual": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "codewords": (
        {"quantizer": {**VQ, "dtype": "float16"}},
        {"quantizer": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "table": (
        {"quantizer": {**TRELLIS, "dtype": "float16"}},
        {"quantizer": {"dtype": "float32"}},
        "`dtype: float32`",
    ),
    "values": (
        {"quantizer": {"kind": "none", "dtype": "float16"}},
        {"quantizer": {"dtype": BF16}},
        "`dtype: bfloat16`",
    ),
}
"""A plan with one type that is too narrow, the change that the hint asks for, the hint."""


def changed(stages, change):
    merged = dict(stages)
    for stage, value in change.items():
        merged[stage] = {**stages[stage], **value} if isinstance(value, dict) else value
    return merged


@pytest.mark.parametrize("what", NARROW)
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_a_type_that_is_too_narrow_is_refused_and_the_hint_works(what, factor, gaussian):
    stages, change, hint = NARROW[what]
    weight = gaussian(*SHAPE)
    ordinary = coded(plan_of(**stages), weight).relative_error
    # Without scales or with the root of a weight, less is too little.
    size = factor**2 if what.startswith("factors") else factor
    with pytest.raises(CodecError, match=r"(too small for|overflow) float16") as refused:
        coded(plan_of(**stages), weight * size)
    assert hint in str(refused.value.hint)
    wide = coded(plan_of(**changed(stages, change)), weight * size)
    assert wide.relative_error <= 1.02 * ordinary + 0.01


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**30])
@pytest.mark.parametrize("scales", [TENSOR, {"kind": "none"}], ids=["scales", "no scales"])
def test_gains_and_int8_codewords_have_no_size_that_is_too_narrow(scales, factor, gaussian):
    plan = plan_of(scales=scales, quantizer=VQ, dora=True)
    weight = gaussian(*SHAPE)
    ordinary, other = coded(plan, weight), coded(plan, weight * factor)
    assert other.relative_error == pytest.approx(ordinary.relative_error, rel=1e-3)


@pytest.mark.parametrize("what", NARROW)
def test_zeros_and_tiny_rows_beside_others_pass(what, gaussian):
    plan = plan_of(**NARROW[what][0])
    weight = gaussian(*SHAPE)
    weight[3] = 0
    weight[5] *= 1e-12
    assert coded(plan, weight).relative_error < 0.5
    assert coded(plan, torch.zeros(SHAPE)).relative_error == 0


def test_scales_are_held_against_the_weights_and_not_against_themselves(gaussian):
    # All weights near 1: the range of each group is tiny, and so is what its loss costs.
    weight = 1 + 1e-9 * gaussian(*SHAPE).double()
    scales = {"kind": "minmax", "per": "row", "dtype": "float16"}
    plan = plan_of(scales=scales, quantizer=UNIFORM)
    assert coded(plan, weight, "f64").relative_error < 1e-3
    # All scales alike: what they have above the least is nothing beside it.
    signs = torch.sign(gaussian(*SHAPE))
    signs[:, 0] *= 1 + 1e-7
    two_level = {**ABSMAX, "dtype": "float16", "bits": 8}
    assert coded(plan_of(scales=two_level, quantizer=UNIFORM), signs).relative_error < 1e-6


def test_a_rest_that_is_nothing_beside_the_matrix_may_be_lost(gaussian):
    # The quantizer gives the matrix back but for rounding; the factors of the rest vanish.
    weight = torch.randint(0, 16, SHAPE).float() / 15 * 2 - 1
    weight[:, 0] = 1
    residual = {"kind": "low_rank", "rank": 2, "order": "quantizer_first"}
    plan = plan_of(residual=residual, scales={"kind": "absmax", "per": "row"}, quantizer=UNIFORM)
    assert coded(plan, weight).relative_error < 1e-6


@pytest.mark.parametrize("power", [-90, -60, 60, 90])
@pytest.mark.parametrize("quantizer", [VQ, TRELLIS, UNIFORM])
def test_a_power_of_two_changes_the_scales_alone(power, quantizer, gaussian):
    plan = plan_of(
        residual={"kind": "low_rank", "rank": 2, "dtype": "float32"},
        transform=[{"kind": "hadamard", "block": 16}],
        permutation={"kind": "nearest"},
        scales={"kind": "rms", "per": "row"},
        quantizer=quantizer,
    )
    weight = gaussian(*SHAPE)
    one, other = coded(plan, weight), coded(plan, weight * 2.0**power)
    assert other.relative_error == pytest.approx(one.relative_error, rel=1e-6)
    for role in one.sections.keys() - {"l1", "l2", "scales"}:
        assert torch.equal(one.sections[role], other.sections[role])
    assert torch.equal(other.sections["scales"], one.sections["scales"] * 2.0**power)


@pytest.mark.parametrize("quantizer", [VQ, TRELLIS])
@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_squares_that_float32_does_not_hold_are_refused_without_scales(quantizer, factor, gaussian):
    plan = plan_of(quantizer={**quantizer, "dtype": "float32"})
    with pytest.raises(CodecError, match="without scales") as refused:
        coded(plan, gaussian(*SHAPE) * factor)
    assert "scales" in str(refused.value.hint)
    scaled = plan_of(quantizer={**quantizer, "dtype": "float32"}, scales=TENSOR)
    assert coded(scaled, gaussian(*SHAPE) * factor).relative_error < 0.5


def test_what_vanishes_on_another_way_is_refused(gaussian, monkeypatch):
    plan = plan_of(scales=TENSOR, quantizer=VQ)
    encode = numbers.stored
    monkeypatch.setattr(
        "reallm_compiler.codecs.scales.stored", lambda *given, **more: encode(*given, **more) * 0
    )
    with pytest.raises(CodecError, match="zero everywhere"):
        coded(plan, gaussian(*SHAPE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_rule_of_loss(dtype):
    least = torch.finfo(dtype).smallest_normal
    # Numbers at and above the least normal one lose nothing that counts here.
    fine = torch.tensor([least, 1.3 * least, 1.0, 1.7], dtype=torch.float64)
    numbers.stored(fine, dtype, "values", "")
    # A third of the least step is lost whole.
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    gone = torch.full((4,), step / 3, dtype=torch.float64)
    with pytest.raises(CodecError, match="too small") as refused:
        numbers.stored(gone, dtype, "values", "")
    assert "1 of their size would be lost" in str(refused.value.note)
    beside = torch.cat([gone, torch.tensor([1000 * step])])
    numbers.stored(beside, dtype, "values", "")
    with pytest.raises(CodecError):
        numbers.stored(beside, dtype, "values", "", size=float(step))
    with pytest.raises(CodecError):
        numbers.stored(beside, dtype, "values", "", cost=torch.tensor([1e6] * 4 + [1.0]))


@pytest.mark.parametrize("largest", [1.0, 2.0**40, 2.0**-40, 0.0])
def test_ordinary_numbers_are_their_own_unit(largest):
    assert numbers.unit(torch.tensor([0.0, -largest])) == 1


@pytest.mark.parametrize("largest", [3e38, -1e30, 1e-20, 1e-45])
def test_a_unit_is_a_power_of_four(largest):
    one = numbers.unit(torch.tensor([largest, 0.0]))
    assert abs(torch.tensor(largest).double()) / one < 4
    assert torch.tensor(largest) / one
    assert torch.frexp(torch.tensor(one).double().sqrt()).mantissa == 0.5
