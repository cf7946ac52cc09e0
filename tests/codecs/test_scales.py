"""Scales of one and of two levels, against sums over explicit groups."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.errors import CodecError
from reallm_compiler.storage.scales import group_count

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 100), (12, 128)]


def params_of(plan_of, **scales):
    return plan_of(scales=scales).scales


def groups_of(params, weight):
    """Weights of each group by plain slicing."""
    if params.per == "tensor":
        return [weight.reshape(-1)]
    if params.per == "row":
        return list(weight)
    if params.per == "column":
        return list(weight.t())
    return list(weight.reshape(-1).split(params.block))


def spread(params, values, shape):
    """One value for each weight [p, q]."""
    p, q = shape
    if params.per == "tensor":
        return values.expand(shape)
    if params.per == "row":
        return values[:, None].expand(shape)
    if params.per == "column":
        return values[None, :].expand(shape)
    return values.repeat_interleave(params.block)[: p * q].view(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per", ["tensor", "row", "column", "block"])
@pytest.mark.parametrize("kind", ["rms", "absmax", "minmax"])
def test_one_level_against_explicit_groups(kind, per, shape, gaussian, plan_of):
    params = params_of(plan_of, kind=kind, per=per, block=16)
    weight = gaussian(*shape)
    sections = codec_of(params).encode(params, weight)
    groups = groups_of(params, weight)
    assert len(groups) == group_count(params, shape) == len(sections["scales"])
    expected = {
        "rms": [group.square().mean().sqrt() for group in groups],
        "absmax": [group.abs().max() for group in groups],
        "minmax": [group.max() - group.min() for group in groups],
    }[kind]
    torch.testing.assert_close(sections["scales"], torch.stack(expected))
    if kind == "minmax":
        assert torch.equal(sections["zeros"], torch.stack([group.min() for group in groups]))

    field = codec_of(params).decoder(params, shape, sections, torch.float32)
    assert field is not None
    wide = spread(params, field.scale, shape)
    zero = spread(params, field.zero, shape) if kind == "minmax" else 0.0
    normal = field.normalize_(weight.clone())
    expected_normal = torch.where(wide > 0, (weight - zero) / wide, 0.0)
    torch.testing.assert_close(normal, expected_normal)
    torch.testing.assert_close(field.restore_(normal, 0), weight, atol=1e-6, rtol=1e-5)
    assert torch.equal(field.rows(0, shape[0]), wide)
    row, column = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    assert torch.equal(field.at(row, column), wide)
    assert field.mean_square() == pytest.approx(float(wide.double().square().mean()), rel=1e-6)
    for first in range(0, shape[0], 3):
        last = min(first + 3, shape[0])
        assert torch.equal(field.rows(first, last), wide[first:last])


@pytest.mark.parametrize(("bits", "superblock"), [(8, 256), (4, 8), (2, 3)])
@pytest.mark.parametrize("kind", ["absmax", "minmax"])
def test_two_levels_by_the_formula(kind, bits, superblock, gaussian, plan_of):
    params = params_of(plan_of, kind=kind, block=16, bits=bits, superblock=superblock)
    weight = gaussian(33, 100)
    sections = codec_of(params).encode(params, weight)
    names = ["scales", "zeros"] if kind == "minmax" else ["scales"]
    decoded = codec_of(params).decoder(params, (33, 100), sections, torch.float32)
    zero = torch.zeros(207) if kind == "absmax" else decoded.zero
    groups = groups_of(params, weight)
    exact = {
        "zeros": torch.stack([group.min() for group in groups]),
        "scales": torch.stack([group.abs().max() for group in groups])
        if kind == "absmax"
        else torch.stack([group.max() for group in groups]) - zero,
    }
    found = {"scales": decoded.scale, "zeros": decoded.zero}
    for name in names:
        offset = exact[name].min()
        assert sections[f"{name}_offset"].tolist() == pytest.approx([float(offset)], rel=1e-6)
        codes = unpack(sections[name], bits, 207).tolist()
        for index, scale in enumerate(exact[name].tolist()):
            block = exact[name][index // superblock * superblock :][:superblock]
            m = float((block - offset).max())
            code = round((scale - float(offset)) * (2**bits - 1) / m)
            assert abs(codes[index] - code) <= 1  # a tie may round either way
            assert float(found[name][index]) == pytest.approx(
                float(offset) + codes[index] * m / (2**bits - 1), abs=1e-5
            )
            assert abs(float(found[name][index]) - scale) <= m / (2**bits - 1) / 2 + 1e-5


def test_equal_scales_need_no_second_level(plan_of):
    params = params_of(plan_of, kind="absmax", block=4, bits=4, superblock=2)
    weight = torch.tensor([[1.0, 0, 0, 0] * 5])
    sections = codec_of(params).encode(params, weight)
    field = codec_of(params).decoder(params, (1, 20), sections, torch.float32)
    assert field.scale.tolist() == [1.0] * 5


SCALES = [
    {"kind": kind, "per": per, "block": 64, "bits": bits, "dtype": dtype}
    for kind, per, bits, dtype in itertools.product(
        ["rms", "absmax", "minmax"], ["tensor", "row", "column", "block"], [None, 4], ["float16"]
    )
]


@pytest.mark.parametrize("scales", SCALES, ids=lambda w: f"{w['kind']}-{w['per']}-{w['bits']}")
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)])
def test_battery(scales, shape, gaussian, plan_of, check_codec):
    plan = plan_of(scales=scales, quantizer={"kind": "uniform", "bits": 8})
    assert check_codec(plan, gaussian(*shape)).relative_error < 0.9


PAIRS = [
    (scales, quantizer)
    for scales in SCALES
    for quantizer in (
        {"kind": "none", "dtype": "bfloat16"},
        {"kind": "uniform", "bits": 3},
        {"kind": "normal_float", "bits": 2},
        {"kind": "vq", "bits": 2, "dim": 2},
    )
    if (scales["kind"], quantizer["kind"]) != ("minmax", "normal_float")
]


@pytest.mark.parametrize(("scales", "quantizer"), PAIRS)
def test_zeros_decode_to_zeros(scales, quantizer, plan_of, check_codec):
    plan = plan_of(scales=scales, quantizer=quantizer)
    encoded = check_codec(plan, torch.zeros(10, 64))
    assert encoded.relative_error == 0
    back = decode_matrix(plan, (10, 64), "f32", encoded.sections, dtype=torch.float32)
    assert not back.any()


def test_a_group_of_zeros_among_others_stays_zero(gaussian, plan_of):
    weight = gaussian(8, 64)
    weight[3] = 0
    for quantizer in ({"kind": "uniform", "bits": 2}, {"kind": "vq", "bits": 2, "dim": 4}):
        plan = plan_of(scales={"kind": "absmax", "block": 64}, quantizer=quantizer)
        encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
        back = decode_matrix(plan, (8, 64), "f32", encoded.sections, dtype=torch.float32)
        assert not back[3].any()
        assert back[2].any()


def test_a_constant_row_is_exact_under_minmax(gaussian, plan_of):
    weight = gaussian(4, 32)
    weight[2] = 0.3
    plan = plan_of(
        scales={"kind": "minmax", "per": "row"}, quantizer={"kind": "uniform", "bits": 2}
    )
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    back = decode_matrix(plan, (4, 32), "f32", encoded.sections, dtype=torch.float32)
    assert torch.equal(back[2], weight[2])


def test_overflow_of_the_stored_type_is_refused(plan_of):
    params = params_of(plan_of, kind="absmax", per="row", dtype="float16")
    with pytest.raises(CodecError, match="scales up to 70000 overflow float16"):
        codec_of(params).encode(params, torch.tensor([[7e4, 1.0]]))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rms_neither_overflows_nor_vanishes(size, plan_of):
    params = params_of(plan_of, kind="rms", per="row")
    sections = codec_of(params).encode(params, torch.tensor([[3.0, 4.0]]) * size)
    assert float(sections["scales"]) == pytest.approx(12.5**0.5 * size, rel=1e-6)


def test_scales_that_round_to_almost_nothing_stay_finite(plan_of, check_codec):
    weight = torch.full((64, 64), 1e-3)
    weight[0] = 1e-30
    weight[1] = 1.0
    scales = {"kind": "absmax", "per": "row", "bits": 2, "superblock": 64}
    for quantizer in ({"kind": "none", "dtype": "float16"}, {"kind": "vq", "bits": 2, "dim": 2}):
        check_codec(plan_of(scales=scales, quantizer=quantizer), weight)
