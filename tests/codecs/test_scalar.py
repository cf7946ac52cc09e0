"""Levels, look-ups and stored numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.codecs.quantizers.scalar import byte_table, look_up, nearest_levels
from reallm_compiler.errors import CodecError


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nearest_levels_equals_bucketize(data):
    number = st.floats(-1e3, 1e3, width=32)
    levels = torch.tensor(sorted(data.draw(st.lists(number, min_size=2, max_size=20))))
    middle = (levels[1:] + levels[:-1]) / 2
    drawn = torch.tensor(data.draw(st.lists(number, max_size=20)), dtype=torch.float32)
    values = torch.cat([drawn, levels, middle, middle.nextafter(torch.tensor(1e4)), -levels])
    assert torch.equal(nearest_levels(values, levels), torch.bucketize(values, middle))


def test_ties_go_to_the_lower_level():
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    values = torch.tensor([-2.0, -0.5, 0.25, 0.75, 0.7500001, 3.0])
    assert nearest_levels(values, levels).tolist() == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_byte_table_holds_the_entries_of_all_codes_of_a_byte(bits, dtype):
    entries = torch.randn(2**bits, 3, dtype=dtype)
    table = byte_table(entries, bits)
    for byte in (0, 1, 37, 255):
        codes = [byte >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
        assert table[byte].tolist() == torch.cat([entries[code] for code in codes]).tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_look_up_is_plain_indexing(width, dtype):
    table = torch.randn(256, width).to(dtype)
    codes = torch.randint(256, (100,), dtype=torch.uint8)
    assert torch.equal(look_up(table, codes), table[codes.long()])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("f16", torch.float16),
        ("bf16", torch.bfloat16),
        ("f32", torch.float32),
        ("f64", torch.float64),
        ("f8_e4m3", torch.float8_e4m3fn),
        ("f8_e5m2", torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (33, 100)])
def test_stored_numbers_are_exact(name, dtype, shape, gaussian, plan_of, check_codec):
    from reallm_compiler.codecs import decode_matrix

    weight = gaussian(*shape).to(torch.float64).mul(1.1).to(dtype)
    weight[0, 0] = -0.0
    encoded = check_codec(plan_of(), weight, name)
    assert encoded.relative_error == 0
    back = decode_matrix(plan_of(), shape, name, encoded.sections, dtype=dtype)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(back.view(bits), weight.view(bits))


def test_a_value_that_overflows_its_stored_type_is_refused(plan_of, check_codec):
    weight = torch.tensor([[1.0, 1e5]])
    with pytest.raises(CodecError, match="values up to 100000 overflow float16"):
        check_codec(plan_of(quantizer={"kind": "none", "dtype": "float16"}), weight)
    with_scales = plan_of(scales={"kind": "absmax"}, quantizer={"kind": "none", "dtype": "float16"})
    assert check_codec(with_scales, weight).relative_error < 1e-3
