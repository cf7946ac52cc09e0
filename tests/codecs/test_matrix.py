"""The pipeline: any plan, any shape; refusals; shared codebooks."""

from __future__ import annotations

import math

import pytest
import torch

from reallm_compiler.codecs import MatrixDecoder, decode_matrix, encode_matrix, fit_shared, latent
from reallm_compiler.errors import CodecError
from reallm_compiler.storage.matrix import layout_of


def reallm_2bit(plan_of):
    return plan_of(
        residual={"kind": "low_rank", "rank": "1/16"},
        permutation={"kind": "nearest", "rows": 32},
        scales={"kind": "absmax", "block": 16, "bits": 8, "superblock": 256},
        quantizer={"kind": "vq", "bits": 2, "dim": 4},
        dora=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_the_work_rounded_once(dtype, gaussian, plan_of):
    plan = reallm_2bit(plan_of)
    encoded = encode_matrix(plan, gaussian(172, 64), seed=0, source_dtype="f32")
    exact = decode_matrix(plan, (172, 64), "f32", encoded.sections, dtype=torch.float32)
    other = decode_matrix(plan, (172, 64), "f32", encoded.sections, dtype=dtype)
    assert other.dtype == dtype
    assert torch.equal(other, exact.to(dtype))


@pytest.mark.parametrize("panel", [1, 5000, 20000])
def test_panels_join_without_a_seam(panel, gaussian, plan_of, monkeypatch):
    plan = reallm_2bit(plan_of)
    encoded = encode_matrix(plan, gaussian(172, 64), seed=0, source_dtype="f32")
    whole = decode_matrix(plan, (172, 64), "f32", encoded.sections, dtype=torch.float32)
    monkeypatch.setattr(latent, "PANEL", panel)
    parts = decode_matrix(plan, (172, 64), "f32", encoded.sections, dtype=torch.float32)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    reader = MatrixDecoder(layout_of(plan, (172, 64), "f32"), encoded.sections, torch.float32)
    panels = list(reader.panels())
    assert (len(panels) == 1) == (panel > 172 * 64)
    assert panels[0][0] == 0
    assert panels[-1][1] == 172
    torch.testing.assert_close(reader.rows(*panels[-1]), whole[panels[-1][0] :])


@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "none"},
        {"kind": "uniform", "bits": 3},
        {"kind": "normal_float", "bits": 4},
        {"kind": "vq", "bits": 3, "dim": 1},
        {"kind": "vq", "bits": 1, "dim": 3, "axis": "cols"},
        {"kind": "vq", "bits": 1, "dim": 3, "axis": "rows"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_panels_of_odd_width_begin_at_whole_bytes(quantizer, gaussian, plan_of, monkeypatch):
    plan = plan_of(scales={"kind": "absmax", "block": 9}, quantizer=quantizer)
    sections = encode_matrix(plan, gaussian(61, 7), seed=0, source_dtype="f32").sections
    whole = decode_matrix(plan, (61, 7), "f32", sections, dtype=torch.float32)
    monkeypatch.setattr(latent, "PANEL", 1)
    assert torch.equal(decode_matrix(plan, (61, 7), "f32", sections, dtype=torch.float32), whole)


def test_decoding_by_the_formula(gaussian, plan_of):
    """Everything spelled out: g (P^-1(s C[codes]) + L1 L2)."""
    from reallm_compiler.codecs.numerics.packing import unpack

    plan, weight = reallm_2bit(plan_of), gaussian(64, 48)
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    s = encoded.sections
    codes = unpack(s["codes"], 8, 16 * 48).view(16, 48).long()
    vectors = (s["codebook"].float() * s["codebook_scale"])[codes]  # [16, 48, 4]
    latent = vectors.permute(0, 2, 1).reshape(64, 48)
    super_scales = s["scales_super"].float().repeat_interleave(256)[: 64 * 48 // 16]
    scale = s["scales_offset"].float() + unpack(s["scales"], 8, 192).float() * super_scales / 255
    latent = latent * scale.repeat_interleave(16).view(64, 48)
    order = unpack(s["order"], 6, 2 * 48).view(2, 48).long()
    coded = torch.stack([latent[i, order[i // 32]] for i in range(64)])
    total = coded + s["l1"].float() @ s["l2"].float()
    total = total * s["gain"].float()[:, None]
    back = decode_matrix(plan, (64, 48), "f32", s, dtype=torch.float32)
    torch.testing.assert_close(back, total, rtol=1e-5, atol=1e-6)


def test_the_seed_matters_and_nothing_else(gaussian, plan_of):
    plan, weight = reallm_2bit(plan_of), gaussian(64, 64)
    first = encode_matrix(plan, weight, seed=1, source_dtype="f32")
    torch.manual_seed(123)
    second = encode_matrix(plan, weight, seed=1, source_dtype="f32")
    assert all(torch.equal(first.sections[role], second.sections[role]) for role in first.sections)
    other = encode_matrix(plan, weight, seed=2, source_dtype="f32")
    assert not torch.equal(first.sections["codes"], other.sections["codes"])


def test_a_strided_weight_is_the_same_weight(gaussian, plan_of):
    plan, weight = reallm_2bit(plan_of), gaussian(64, 48)
    first = encode_matrix(plan, weight, seed=1, source_dtype="f32")
    second = encode_matrix(plan, weight.t().contiguous().t(), seed=1, source_dtype="f32")
    assert all(torch.equal(first.sections[role], second.sections[role]) for role in first.sections)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(value, gaussian, plan_of):
    weight = gaussian(10, 12)
    weight[7, 3] = value
    weight[8, 1] = value
    with pytest.raises(CodecError, match=f"at row 7, column 3 is {value}"):
        encode_matrix(plan_of(), weight, seed=0, source_dtype="f32")


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int32)],
    ids=["vector", "empty", "integers"],
)
def test_what_is_no_matrix_is_refused(weight, plan_of):
    with pytest.raises(CodecError):
        encode_matrix(plan_of(), weight, seed=0, source_dtype="f32")


def test_sections_that_break_the_size_law_are_refused(gaussian, plan_of):
    plan = plan_of(scales={"kind": "absmax"}, quantizer={"kind": "uniform", "bits": 4})
    sections = encode_matrix(plan, gaussian(8, 64), seed=0, source_dtype="f32").sections
    for wrong in (
        {"codes": sections["codes"]},
        sections | {"codes": sections["codes"][:-1]},
        sections | {"scales": sections["scales"].half()},
    ):
        with pytest.raises(CodecError, match="size law"):
            decode_matrix(plan, (8, 64), "f32", wrong, dtype=torch.float32)


class TestShared:
    def plan(self, plan_of, **fields):
        return plan_of(
            scales={"kind": "absmax", "block": 64},
            quantizer={"kind": "vq", "bits": 2, "dim": 4},
            share="mlp",
            **fields,
        )

    def test_a_shared_codebook_serves_all_members(self, gaussian, plan_of):
        plan = self.plan(plan_of, residual={"kind": "low_rank", "rank": 2})
        # One member is a thousand times larger: it must not take the codebook for itself.
        weights = [gaussian(64, 64), 1000 * gaussian(130, 64, seed=1), gaussian(33, 100, seed=2)]
        shared = fit_shared([plan] * len(weights), weights, seed=4)
        assert list(shared) == ["codebook", "codebook_scale"]
        again = fit_shared([plan] * len(weights), weights, seed=4)
        assert all(torch.equal(shared[role], again[role]) for role in shared)
        for weight in weights:
            encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32", shared=shared)
            assert not shared.keys() & encoded.sections.keys()
            assert encoded.relative_error < 0.34
            back = decode_matrix(
                plan, tuple(weight.shape), "f32", encoded.sections | shared, dtype=torch.float32
            )
            error = float((back - weight).norm() / weight.norm())
            assert error == pytest.approx(encoded.relative_error, rel=1e-5)

    @pytest.mark.parametrize("per", ["tensor", "row"])
    def test_members_count_by_their_weights_and_relative_errors(self, per, gaussian, plan_of):
        plan = plan_of(
            scales={"kind": "rms", "per": per},
            quantizer={"kind": "vq", "bits": 1, "dim": 1, "dtype": "float32"},
            share="all",
        )
        signs = 1000 * gaussian(64, 256).sign()
        normal = gaussian(128, 256, seed=1)
        codewords = fit_shared([plan] * 2, [signs, normal], seed=0)["codebook"]
        # Alone the first wants +-1 and the second +-sqrt(2/pi); it has twice as many weights.
        expected = (1 + 2 * (2 / math.pi) ** 0.5) / 3
        assert codewords.flatten().tolist() == pytest.approx([-expected, expected], abs=0.01)

    def test_without_scales_large_members_do_not_take_the_codebook(self, gaussian, plan_of):
        plan = plan_of(
            quantizer={"kind": "vq", "bits": 1, "dim": 1, "dtype": "float32"}, share="all"
        )
        signs, normal = 3 * gaussian(64, 256).sign(), gaussian(128, 256, seed=1)
        codewords = fit_shared([plan] * 2, [signs, normal], seed=0)["codebook"]
        # The least of (3 - c)^2 / 9 + 2 E(|x| - c)^2.
        expected = (3 / 9 + 2 * (2 / math.pi) ** 0.5) / (1 / 9 + 2)
        assert codewords.flatten().tolist() == pytest.approx([-expected, expected], abs=0.01)

    def test_a_missing_group_is_refused(self, gaussian, plan_of):
        with pytest.raises(CodecError, match="share group `mlp` are missing"):
            encode_matrix(self.plan(plan_of), gaussian(8, 64), seed=0, source_dtype="f32")

    def test_nothing_to_share_is_refused(self, gaussian, plan_of):
        with pytest.raises(CodecError):
            fit_shared([plan_of()], [gaussian(8, 64)], seed=0)
        with pytest.raises(CodecError):
            fit_shared([], [], seed=0)
