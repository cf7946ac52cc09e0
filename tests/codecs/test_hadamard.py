"""The transform `hadamard`: orthogonal, undone by panels, free, the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import reallm_compiler as reallm
from reallm_compiler.codecs import MatrixDecoder, decode_matrix, encode_matrix
from reallm_compiler.codecs.transforms import hadamard
from reallm_compiler.storage.matrix import layout_of

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64), (256, 24)]

CODEC = hadamard.HadamardCodec()


def transform(**fields):
    return [{"kind": "hadamard"} | fields]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sides", ["both", "rows", "columns"])
@pytest.mark.parametrize("block", [2, 128])
def test_laws(shape, sides, block, gaussian, plan_of, check_codec):
    plan = plan_of(
        transform=transform(sides=sides, block=block),
        scales={"kind": "absmax", "per": "row"},
        quantizer={"kind": "uniform", "bits": 8},
    )
    assert check_codec(plan, gaussian(*shape)).relative_error < 0.02


@pytest.mark.parametrize("sides", ["both", "rows", "columns"])
def test_it_is_what_the_formula_says(sides, gaussian, plan_of):
    weight = gaussian(24, 12).double()
    params = plan_of(transform=transform(sides=sides, block=4, seed=3)).transform[0]
    mix = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    left = torch.block_diag(*[mix.double()] * 6) @ torch.diag(hadamard.signs(24, 6))
    right = torch.diag(hadamard.signs(12, 7)) @ torch.block_diag(*[mix.double()] * 3)
    expected = left @ weight if sides != "columns" else weight
    expected = expected @ right if sides != "rows" else expected
    sections, found = CODEC.encode(params, weight.clone())
    assert sections == {}
    torch.testing.assert_close(found, expected)
    restored = CODEC.decoder(params, (24, 12), {}, torch.float64)
    torch.testing.assert_close(restored.restore_(found.clone(), 0), weight)


def test_panels_begin_where_a_block_does(gaussian, plan_of, monkeypatch):
    plan = plan_of(transform=transform(), quantizer={"kind": "none", "dtype": "float32"})
    weight = gaussian(160, 24)  # blocks of 32 rows and 8 columns
    sections = encode_matrix(plan, weight, seed=0, source_dtype="f32").sections
    reader = MatrixDecoder(layout_of(plan, (160, 24), "f32"), sections, torch.float32)
    torch.testing.assert_close(reader.rows(64, 128), weight[64:128], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("reallm_compiler.codecs.latent.PANEL", 24 * 40)
    assert [first for first, _ in reader.panels()] == [0, 32, 64, 96, 128]
    decoded = decode_matrix(plan, (160, 24), "f32", sections, dtype=torch.float32)
    torch.testing.assert_close(decoded, weight, atol=1e-5, rtol=1e-5)


def test_outliers_are_spread(gaussian, plan_of):
    weight = gaussian(64, 128)
    weight[5, 9] = 500
    by_row = {"kind": "absmax", "per": "row"}
    fields = {"scales": by_row, "quantizer": {"kind": "uniform", "bits": 4}}
    plain = encode_matrix(plan_of(**fields), weight, seed=0, source_dtype="f32")
    spread = encode_matrix(
        plan_of(transform=transform(), **fields), weight, seed=0, source_dtype="f32"
    )
    inside = (weight.abs() < 10).float()

    def error(plan, encoded):
        decoded = decode_matrix(plan, (64, 128), "f32", encoded.sections, dtype=torch.float32)
        return float(((decoded - weight) * inside)[5].norm())

    assert error(plan_of(transform=transform(), **fields), spread) < error(plan_of(**fields), plain)


def test_it_stores_nothing(plan_of):
    plan = plan_of(transform=transform(), quantizer={"kind": "none"})
    assert [spec.role for spec in layout_of(plan, (64, 64), "bf16").sections] == ["values"]


def test_signs_are_those_of_splitmix64():
    # Its first outputs from 0 are known: e220a839..., 6e789e6a..., 06c45d18...
    assert hadamard.signs(3, 0).tolist() == [-1, 1, 1]
    many = hadamard.signs(4096, 12345)
    assert abs(float(many.mean())) < 0.05


def test_signs_are_those_of_the_specification():
    text = (Path(__file__).parents[2] / "formats" / "SPEC.md").read_text(encoding="utf-8")
    vectors = re.findall(r"signs\((\d+), (\d+)\) +([+-]+)", text)
    assert len(vectors) == 4
    for count, seed, signs in vectors:
        found = hadamard.signs(int(count), int(seed)).tolist()
        assert "".join("+" if sign > 0 else "-" for sign in found) == signs


def test_matrices_of_one_input_share_its_transform(gaussian):
    """q, k and v of one attention, resolved from one recipe."""
    recipe = {
        "reallm": 1,
        "defaults": {"transform": transform(seed=3), "quantizer": {"kind": "none"}},
    }
    shapes = {f"layers.0.self_attn.{name}_proj.weight": [rows, 24]
              for name, rows in (("q", 64), ("k", 16), ("v", 16))}  # fmt: skip
    matrices = reallm.plan(recipe, model={"shapes": shapes}).matrices
    x = gaussian(5, 24)
    found = []
    for matrix in matrices:
        params = matrix.plan.transform[0]
        weight = gaussian(*matrix.shape)
        rotation = CODEC.decoder(params, matrix.shape, {}, torch.float32)
        rotated = CODEC.encode(params, weight.clone())[1]
        found.append(rotation.inputs(x))
        torch.testing.assert_close(
            rotation.outputs(found[-1] @ rotated.T), x @ weight.T, atol=1e-4, rtol=1e-4
        )
    assert len(found) == 3
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("block", [1, 3, 8192])
def test_a_block_that_is_no_power_of_two_is_refused(block, plan_of):
    with pytest.raises(ValidationError, match="power of two from 2 to 4096"):
        plan_of(transform=transform(block=block))


def test_one_line_of_vectors_is_rotated_back(gaussian, plan_of):
    """Its rows lie column by column in memory."""
    plan = plan_of(transform=transform(), quantizer={"kind": "vq", "bits": 2, "dim": 2})
    coded = encode_matrix(plan, gaussian(2, 130), seed=0, source_dtype="f32")
    assert coded.relative_error < 0.5
