"""Section tensors and bytes."""

from __future__ import annotations

import struct

import pytest
import torch

from reallm_compiler.codecs.sections import TORCH_DTYPES, check_sections, from_bytes, to_bytes
from reallm_compiler.errors import CodecError
from reallm_compiler.storage.base import SectionSpec
from reallm_formats.dtypes import NUMBERS


def spec(dtype, *shape, role="codes"):
    return SectionSpec(role=role, dtype=dtype, shape=shape, term="codes")


def test_every_type_of_the_container_has_a_torch_type():
    assert set(TORCH_DTYPES) == set(NUMBERS)
    for name, dtype in TORCH_DTYPES.items():
        assert dtype.itemsize * 8 == NUMBERS[name]


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_bytes_come_back(name):
    wanted = spec(name, 3, 5)
    raw = bytes(range(wanted.nbytes)) if name != "bool" else bytes([0, 1, 1] * 5)
    tensor = from_bytes(raw, wanted)
    assert tensor.dtype == TORCH_DTYPES[name]
    assert tensor.shape == (3, 5)
    assert bytes(to_bytes(tensor, wanted)) == raw


def test_numbers_are_little_endian():
    single = torch.tensor([1.5, -2.0])
    assert bytes(to_bytes(single, spec("f32", 2))) == struct.pack("<2f", 1.5, -2)
    half = single.to(torch.bfloat16)
    assert bytes(to_bytes(half, spec("bf16", 2))) == b"\xc0\x3f\x00\xc0"


def test_codes_are_bytes_of_one_dimension():
    wanted = spec("b3", 4, 5)
    tensor = from_bytes(b"\1\2\3\4\5\6\7\x08", wanted)
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_view_that_is_not_contiguous_is_written_in_row_major_order():
    tensor = torch.arange(6, dtype=torch.int8).view(2, 3).t()
    assert bytes(to_bytes(tensor, spec("i8", 3, 2))) == bytes([0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_without_a_warning(kind):
    assert from_bytes(kind(b"\0\0\x80\x3f"), spec("f32", 1)).tolist() == [1.0]


def test_bytes_at_an_odd_address():
    raw = memoryview(bytearray(b"x" + struct.pack("<2f", 1.0, 2.0)))[1:]
    tensor = from_bytes(raw, spec("f32", 2))
    assert tensor.tolist() == [1.0, 2.0]
    assert tensor.data_ptr() % 4 == 0


def test_an_empty_section():
    assert from_bytes(b"", spec("f32", 0, 4)).shape == (0, 4)
    assert bytes(to_bytes(torch.empty(0, 4), spec("f32", 0, 4))) == b""


def test_a_wrong_length_is_refused():
    with pytest.raises(CodecError, match="`codes` has 7 bytes, its size law says 8"):
        from_bytes(b"1234567", spec("f32", 2))


def test_every_difference_is_named():
    specs = [spec("f32", 2), spec("b2", 8, role="order"), spec("f16", 1, role="scales")]
    produced = {
        "codes": torch.zeros(2, dtype=torch.float16),
        "order": torch.zeros(3, dtype=torch.uint8),
        "extra": torch.zeros(1),
    }
    with pytest.raises(CodecError) as caught:
        check_sections(produced, specs)
    message = str(caught.value)
    assert "`codes` is f16 [2], the size law says f32 [2]" in message
    assert "`order` is u8 [3], the size law says u8 [2]" in message
    assert "`scales` is missing" in message
    assert "`extra` is not in the size law" in message
