"""Packing against a loop over single bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.codecs.numerics import packing
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.errors import CodecError


def slow_pack(codes: list[int], bits: int) -> bytes:
    stream = bytearray((len(codes) * bits + 7) // 8)
    for index, code in enumerate(codes):
        for bit in range(bits):
            if code >> bit & 1:
                at = index * bits + bit
                stream[at // 8] |= 1 << at % 8
    return bytes(stream)


def random_codes(count: int, bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * 17 + bits)
    return torch.randint(1 << bits, (count,), generator=generator)


@pytest.mark.parametrize("bits", list(range(1, 17)))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 33, 100])
def test_equals_the_bit_loop(bits, count):
    codes = random_codes(count, bits)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == slow_pack(codes.tolist(), bits)
    back = unpack(packed, bits, count)
    assert back.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert back.tolist() == codes.tolist()


@given(data=st.data(), bits=st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_any_codes_come_back(data, bits):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert bytes(packed.tolist()) == slow_pack(codes, bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("bits", list(range(1, 17)))
def test_blocks_join_without_a_seam(bits, monkeypatch):
    codes = random_codes(1000, bits)
    whole = pack(codes, bits)
    monkeypatch.setattr(packing, "BLOCK", 64)
    assert torch.equal(pack(codes, bits), whole)
    assert unpack(whole, bits, 1000).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", [3, 4, 12])
def test_a_stream_can_be_entered_at_every_eighth_code(bits):
    codes = random_codes(200, bits)
    packed = pack(codes, bits)
    assert unpack(packed[72 * bits // 8 :], bits, 50).tolist() == codes[72:122].tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type_and_shape(dtype):
    codes = random_codes(24, 5).to(dtype).view(4, 6)
    assert unpack(pack(codes.t(), 5), 5, 24).tolist() == codes.t().reshape(-1).tolist()


def test_a_short_stream_is_refused():
    with pytest.raises(CodecError, match="2 bytes cannot hold 6 codes of 3 bits"):
        unpack(torch.zeros(2, dtype=torch.uint8), 3, 6)
