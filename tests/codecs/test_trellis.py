"""The trellis quantizer: its size law, its table, its high-rate columns, and how good it is."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from reallm_compiler.codecs import decode_matrix, encode_matrix, fit_shared
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.quantizers.trellis_stream import HighRate, RowStream
from reallm_compiler.codecs.quantizers.trellis_table import computed_table
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.matrix import layout_of
from reallm_compiler.storage.trellis import (
    column_widths,
    high_rate_columns,
    row_bytes,
    sample_segments,
)

ROW = {"kind": "rms", "per": "row"}


def quantizer(bits, state_bits=6, **fields):
    return {"kind": "trellis", "bits": bits, "state_bits": state_bits, "iterations": 3} | fields


def parameters(bits, **fields) -> TrellisQuantizer:
    return TrellisQuantizer.model_validate(quantizer(bits, **fields))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (33, 100)])
@pytest.mark.parametrize("bits", [1, "9/4", 3])
@pytest.mark.parametrize(
    "scales",
    [{"kind": "none"}, ROW, {"kind": "rms", "per": "column"}, {"kind": "minmax", "block": 12}],
    ids=lambda fields: fields.get("per", fields["kind"]),
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


# Errors of trellis-coded quantization of N(0, 1) lie between the best vectors of 4 (0.0958 at 2
# bits) and the rate-distortion bound 2^(-2 bits).
@pytest.mark.parametrize(
    ("bits", "state_bits", "most"),
    [(2, 8, 0.0865), (3, 8, 0.0252), (4, 8, 0.0080)],
    ids=str,
)
def test_error_of_normal_values(bits, state_bits, most, gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer(bits, state_bits, iterations=6))
    encoded = encode_matrix(plan, gaussian(64, 512), seed=1, source_dtype="f32")
    assert 2.0 ** (-2 * bits) < encoded.relative_error**2 < most


def test_35_sixteenths_cost_what_the_size_law_says(plan_of):
    plan = plan_of(quantizer=quantizer("35/16", 10), scales={"kind": "rms", "per": "tensor"})
    specs = {spec.role: spec for spec in layout_of(plan, (4096, 4096), "bf16").sections}
    bits = {role: 8 * spec.nbytes for role, spec in specs.items()}
    assert bits == {
        "scales": 32,
        "codes": 4096 * 4096 * 35 // 16,
        "high_rate": 4096,
        "high_rate_scale": 32,
        "codebook": 8 * 1024,
        "codebook_scale": 32,
    }
    paper = layout_of(plan, (4096, 4096), "bf16").paper_bits()
    assert paper == Fraction(35, 16) + Fraction(16 * 1024, 4096**2)


@pytest.mark.parametrize(
    ("bits", "columns", "count"), [(2, 9, 0), ("9/4", 4096, 1024), ("9/4", 5, 2), ("7/2", 1, 1)]
)
def test_how_many_columns_have_the_higher_rate(bits, columns, count):
    assert high_rate_columns(parameters(bits), columns) == count
    assert sum(column_widths(parameters(bits), columns)) == int(parameters(bits).bits) * columns + (
        count
    )


def test_widths_have_a_period_of_16():
    widths = column_widths(parameters("35/16"), 4096)
    assert [index for index, width in enumerate(widths[:16]) if width == 3] == [5, 10, 15]
    assert widths == widths[:16] * 256


@pytest.mark.parametrize(
    ("bits", "columns", "nbytes"),
    [
        (2, 4096, 1024),
        ("35/16", 4096, 1120),
        ("35/16", 11008, 3012),  # 24,080 bits are 752.5 words
        ("35/16", 384, 105),  # a word would pad it by 2.9 %
        (2, 1, 1),
        (8, 3, 3),
    ],
)
def test_rows_begin_at_words_where_it_costs_little(bits, columns, nbytes):
    assert row_bytes(parameters(bits, state_bits=10), columns) == nbytes


@pytest.mark.parametrize(
    ("shape", "sharers", "segments"),
    [((4096, 4096), 1, 2048), ((4096, 4096), 224, 10), ((32, 48), 1, 192), ((32, 48), 224, 10)],
)
def test_a_table_learns_from_a_sample_and_from_no_weight_too_often(shape, sharers, segments):
    params = TrellisQuantizer(kind="trellis", bits=2, state_bits=10)
    assert sample_segments(params, shape, sharers) == segments


@pytest.mark.parametrize("bits", [1, "35/16", 8])
@pytest.mark.parametrize("state_bits", [10, 16])
@pytest.mark.parametrize("columns", [1, 40, 130])
def test_the_stream_by_a_plain_loop(bits, state_bits, columns):
    """The state is the number that the last bits of the stream make, the newest bit on top."""
    stream = RowStream(parameters(bits, state_bits=state_bits), columns, None)
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack(
        [torch.randint(2**width, (3,), generator=generator) for width in stream.widths], 1
    ).to(torch.uint8)
    packed = stream.pack(codes)
    states = stream.states(packed)
    for row in range(3):
        written = int.from_bytes(bytes(packed[row].tolist()), "little")
        end = 0
        for column, width in enumerate(stream.widths):
            assert written >> end & (2**width - 1) == int(codes[row, column])
            end += width
            window = (written << state_bits) >> end & (2**state_bits - 1)
            assert window == int(states[row, column])
        assert not written >> end


def test_the_columns_with_most_energy_have_the_higher_rate(gaussian, plan_of):
    weight = gaussian(40, 16)
    weight[:, [3, 7, 11, 12]] *= 5
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"))
    encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32")
    mask = unpack(encoded.sections["high_rate"], 1, 16)
    assert mask.nonzero()[:, 0].tolist() == [3, 7, 11, 12]
    assert float(encoded.sections["high_rate_scale"]) == pytest.approx(5, rel=0.2)
    narrow = encode_matrix(
        plan_of(scales=ROW, quantizer=quantizer(2)), weight, seed=1, source_dtype="f32"
    )
    assert encoded.relative_error**2 < 0.65 * narrow.relative_error**2


def test_a_computed_table_is_a_hash_of_the_state(gaussian, plan_of):
    """The bytes of 5 x 0x83DCD12D mod 2^32 = 0x935015E1: 147 + 80 + 21 + 225 = 473."""
    table = computed_table(16)
    assert float(table[5]) == pytest.approx((473 - 510) / 147.8005, rel=1e-5)
    assert float(table.mean()) == pytest.approx(0, abs=0.01)
    assert float(table.square().mean()) == pytest.approx(1, abs=0.01)
    plan = plan_of(scales=ROW, quantizer=quantizer(2, 10, table="computed"))
    encoded = encode_matrix(plan, gaussian(32, 256), seed=1, source_dtype="f32")
    assert set(encoded.sections) == {"codes", "scales"}
    assert encoded.relative_error**2 < 0.089


def test_a_group_shares_its_tables(gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"), share="g")
    weights = [gaussian(24, 40), 100 * gaussian(16, 64, seed=1), torch.zeros(8, 8)]
    shared = fit_shared([plan] * 3, weights, seed=3)
    assert {role: tuple(values.shape) for role, values in shared.items()} == {
        "codebook": (64,),
        "codebook_scale": (1,),
    }
    assert torch.equal(shared["codebook"], fit_shared([plan] * 3, weights, seed=3)["codebook"])
    for weight in weights:
        encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", shared=shared)
        assert "codebook" not in encoded.sections
        assert encoded.relative_error < 0.4


def test_a_table_serves_several_rates(gaussian, plan_of):
    """It is learned of all at their own rates: for each better than a table of the other alone."""
    plans = [plan_of(scales=ROW, quantizer=quantizer(bits, 6), share="g") for bits in (1, 4)]
    weights = [gaussian(64, 128), gaussian(64, 128, seed=1)]

    def errors(plan, shared):
        return sum(
            encode_matrix(plan, one, seed=1, source_dtype="f32", shared=shared).relative_error
            for one in weights
        )

    both = fit_shared(plans, weights, seed=3)
    alone = [fit_shared([plan] * 2, weights, seed=3) for plan in plans]
    for plan, own, other in zip(plans, alone, reversed(alone), strict=True):
        assert errors(plan, own) < errors(plan, both) < errors(plan, other)
    same = fit_shared([plans[0]] * 2, weights, seed=3)
    assert torch.equal(same["codebook"], alone[0]["codebook"])


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
    one_row = torch.cat([coded.rows(row, row + 1) for row in range(16, 40)])
    assert torch.equal(one_row * scale, whole[16:40])


def test_a_mask_of_another_number_is_refused(gaussian, plan_of):
    plan = plan_of(scales=ROW, quantizer=quantizer("9/4"))
    sections = encode_matrix(plan, gaussian(8, 16), seed=1, source_dtype="f32").sections
    sections["high_rate"] = torch.full_like(sections["high_rate"], 255)
    with pytest.raises(CodecError, match="another number of high-rate columns"):
        decode_matrix(plan, (8, 16), "f32", sections, dtype=torch.float32)


def test_a_table_that_overflows_is_refused(gaussian, plan_of):
    plan = plan_of(quantizer=quantizer(2, dtype="float16"))
    with pytest.raises(CodecError, match="overflow float16"):
        encode_matrix(plan, 1e6 * gaussian(8, 8), seed=1, source_dtype="f32")


def test_a_block_of_columns_goes_on_where_the_last_one_ended(gaussian, plan_of):
    params = parameters("9/4")
    latent = Latent(
        values=gaussian(9, 40),
        scales=None,
        range="free",
        source_dtype="f32",
        generator=torch.Generator().manual_seed(1),
        quantizer=params,
    )
    codec = codec_of(params)
    tables = codec.fit(params, latent)
    coder = codec.coder(params, latent, tables)
    ordered = latent.values[:, coder.order]
    parts = [coder.quantize(ordered[:, at : at + 10], slice(at, at + 10))[1] for at in (0, 10)]
    parts.append(coder.quantize(ordered[:, 20:], slice(20, 40))[1])
    decoder = codec.decoder(params, (9, 40), coder.sections() | tables, torch.float32, False)
    assert torch.equal(decoder.rows(0, 9)[:, coder.order], torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (quantizer(9), "between 1 and 8"),
        (quantizer("1/2"), "between 1 and 8"),
        (quantizer(4, 4), "must be longer than a code of 4 bits"),
        (quantizer("33/32"), "multiple of 1/16"),
        (quantizer("7/2", 4), "must be longer than a code of 4 bits"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields, reason, plan_of):
    with pytest.raises(ValidationError, match=reason):
        plan_of(quantizer=fields)


def test_a_row_is_that_of_the_specification():
    text = (Path(__file__).parents[2] / "formats" / "SPEC.md").read_text(encoding="utf-8")
    shown = re.search(r" codes +([\d ]+)\n +row +([\da-f ]+)\n +states +([\d ]+)\n", text)
    assert shown is not None
    codes, states = (torch.tensor([int(one) for one in shown[part].split()]) for part in (1, 3))
    mask = torch.zeros(16, dtype=torch.bool)
    mask[[1, 4, 6]] = True
    high_rate = HighRate(mask=mask, scale=torch.ones(1))
    stream = RowStream(parameters("35/16", state_bits=10), 16, high_rate)
    assert stream.order is not None
    row = stream.pack(codes.to(torch.uint8)[None])
    assert bytes(row[0].tolist()) == bytes.fromhex(shown[2])
    assert stream.states(row)[0, stream.order].tolist() == states.tolist()
    # The formula of the page, from the bits of the row.
    bits = "".join(f"{byte:08b}"[::-1] for byte in bytes.fromhex(shown[2]))
    end, found = 0, []
    for t in range(16):
        end += 2 + 3 * (t + 1) // 16 - 3 * t // 16
        found.append(int(("0" * 10 + bits)[end : end + 10][::-1], 2))
    assert found == states.tolist()
