"""The trellis quantiser: its law, its tables, its wide columns, and how good it is."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from pydantic import ValidationError

from reallm_compiler.codecs import decode_matrix, encode_matrix, fit_shared
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.errors import CodecError
from reallm_compiler.storage.matrix import layout_of
from reallm_compiler.storage.trellis import wide_columns

ROW = {"kind": "rms", "per": "row"}


def quantizer(bits, memory=6, **words):
    return {"kind": "trellis", "bits": bits, "memory": memory, "iterations": 3} | words


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (33, 100)])
@pytest.mark.parametrize("bits", [1, "9/4", 3])
@pytest.mark.parametrize(
    "scales",
    [{"kind": "none"}, ROW, {"kind": "rms", "per": "column"}, {"kind": "minmax", "block": 12}],
    ids=lambda words: words.get("per", words["kind"]),
)
def test_laws(shape, bits, scales, gaussian, plan_of, check_codec):
    check_codec(plan_of(scales=scales, quantizer=quantizer(bits)), gaussian(*shape))


@pytest.mark.parametrize("bits", ["9/4", 2])
def test_a_float64_source(bits, gaussian, plan_of, check_codec):
    plan = plan_of(scales=ROW, quantizer=quantizer(bits))
    check_codec(plan, gaussian(9, 20).double(), source_dtype="f64")


def test_zeros_decode_to_zeros(plan_of, check_codec):
    plan = plan_of(scales=ROW, quantizer=quantizer("5/2"))
    assert check_codec(plan, torch.zeros(6, 10)).relative_error == 0


# Errors of trellis-coded quantisation of N(0, 1) lie between the best vectors of 4 (0.0958 at 2
# bits) and the rate-distortion bound 2^(-2 bits).
@pytest.mark.parametrize(
    ("bits", "memory", "most"),
    [(2, 8, 0.0865), (3, 8, 0.0252), (4, 8, 0.0080)],
    ids=str,
)
def test_error_of_normal_values(bits, memory, most, gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer(bits, memory, iterations=6))
    encoded = encode_matrix(plan, gaussian(64, 512), seed=1, source_dtype="f32")
    assert 2.0 ** (-2 * bits) < encoded.relative_error**2 < most


def test_nine_quarters_cost_what_the_law_says(plan_of):
    plan = plan_of(quantizer=quantizer("9/4", 10), scales={"kind": "rms", "per": "tensor"})
    specs = {spec.role: spec for spec in layout_of(plan, (4096, 4096), "bf16").sections}
    bits = {role: Fraction(8 * spec.nbytes, 4096**2) for role, spec in specs.items()}
    assert bits == {
        "scales": Fraction(32, 4096**2),
        "codes": 2,
        "high_bits": Fraction(1, 4),
        "wide": Fraction(1, 4096),
        "codebook": Fraction(2 * 1024 * 16, 4096**2),
    }
    assert layout_of(plan, (4096, 4096), "bf16").paper_bits() == Fraction(9, 4) + bits["codebook"]


@pytest.mark.parametrize(
    ("bits", "columns", "wide"), [(2, 9, 0), ("9/4", 4096, 1024), ("9/4", 5, 2), ("7/2", 1, 1)]
)
def test_how_many_columns_are_wide(bits, columns, wide, plan_of):
    assert wide_columns(plan_of(quantizer=quantizer(bits)).quantizer, columns) == wide


def test_the_columns_with_most_energy_are_wide(gaussian, plan_of):
    weight = gaussian(40, 16)
    weight[:, [3, 7, 11, 12]] *= 5
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"))
    encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32")
    mask = unpack(encoded.sections["wide"], 1, 16)
    assert mask.nonzero()[:, 0].tolist() == [3, 7, 11, 12]
    narrow = encode_matrix(
        plan_of(scales=ROW, quantizer=quantizer(2)), weight, seed=1, source_dtype="f32"
    )
    assert encoded.relative_error**2 < 0.65 * narrow.relative_error**2


def test_a_group_shares_its_tables(gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"), share="g")
    weights = [gaussian(24, 40), 100 * gaussian(16, 64, seed=1), torch.zeros(8, 8)]
    shared = fit_shared(plan, weights, seed=3)
    assert {role: tuple(values.shape) for role, values in shared.items()} == {"codebook": (2, 64)}
    assert torch.equal(shared["codebook"], fit_shared(plan, weights, seed=3)["codebook"])
    for weight in weights:
        encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", shared=shared)
        assert "codebook" not in encoded.sections
        assert encoded.relative_error < 0.36


def test_rows_can_be_read_anywhere(gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"))
    weight = gaussian(48, 30)
    sections = encode_matrix(plan, weight, seed=1, source_dtype="f32").sections
    whole = decode_matrix(plan, (48, 30), "f32", sections, dtype=torch.float32)
    coded = codec_of(plan.quantizer).decoder(
        plan.quantizer, (48, 30), sections, torch.float32, False
    )
    scale = sections["scales"][16:40, None].float()
    assert torch.equal(coded.rows(16, 40) * scale, whole[16:40])


def test_a_mask_of_another_number_is_refused(gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"))
    sections = encode_matrix(plan, gaussian(8, 16), seed=1, source_dtype="f32").sections
    sections["wide"] = torch.full_like(sections["wide"], 255)
    with pytest.raises(CodecError, match="mask of wide columns"):
        decode_matrix(plan, (8, 16), "f32", sections, dtype=torch.float32)


def test_a_table_that_overflows_is_told(gaussian, plan_of):
    with pytest.raises(CodecError, match="overflow float16"):
        encode_matrix(
            plan_of(quantizer=quantizer(2)), 1e6 * gaussian(8, 8), seed=1, source_dtype="f32"
        )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (quantizer(9), "between 1 and 8"),
        (quantizer("1/2"), "between 1 and 8"),
        (quantizer(4, 4), "has no room for codes of 4 bits"),
        (quantizer("7/2", 4), "has no room for codes of 4 bits"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(words, reason, plan_of):
    with pytest.raises(ValidationError, match=reason):
        plan_of(quantizer=words)
