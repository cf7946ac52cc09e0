"""Dense packing of codes: any width from 1 to 16 bits, least significant bit first.

Code i takes bits [i x bits, (i + 1) x bits) of a stream in which bit k is bit k mod 8 of byte
k div 8. The last byte is padded with zeros. Eight codes of any width fill whole bytes, so a
stream can be cut, packed and unpacked at every eighth code.

Widths 1, 2, 4, 8 and 16 have short ways; the others go through 64-bit words, in blocks, so that
no intermediate grows with the stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reallm_compiler.errors import CodecError
from reallm_compiler.units import bytes_of_bits, ceil_div

CODES_PER_GROUP = 8
"""Codes after which a stream of any width stands at a byte boundary."""

BLOCK = 1 << 19
"""Codes that are packed or unpacked in one step."""

# Byte views below read word values from memory in this order, and so does every torch device.
_WORD_BITS = 64


def rows_per_byte(row_bits: int) -> int:
    """Rows of so many bits after which a stream stands at a byte boundary: 1, 2, 4 or 8."""
    return CODES_PER_GROUP // math.gcd(CODES_PER_GROUP, row_bits)


def code_dtype(bits: int) -> torch.dtype:
    """The type of unpacked codes: uint8 up to 8 bits, int32 above."""
    return torch.uint8 if bits <= 8 else torch.int32


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as a dense stream of bytes.

    Args:
        codes: integers in [0, 2^bits), of any shape and integer type, in row-major order.
            Values out of range are the caller's mistake and spoil their neighbours.
        bits: width of a code, 1 to 16.

    Returns:
        uint8 [ceil(codes x bits / 8)], on the device of `codes`.
    """
    flat = codes.reshape(-1)
    count = flat.numel()
    if bits == 8:
        return flat.to(torch.uint8)
    packed = torch.zeros(bytes_of_bits(count * bits), dtype=torch.uint8, device=flat.device)
    for first in range(0, count, BLOCK):
        block = flat[first : first + BLOCK]
        start = first * bits // 8
        stream = _pack_block(block, bits)
        packed[start : start + stream.numel()] = stream
    return packed


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of a stream of bytes; the inverse of `pack`.

    Args:
        data: uint8 [at least ceil(count x bits / 8)].
        bits: width of a code, 1 to 16.
        count: codes wanted.

    Returns:
        uint8 [count] for widths up to 8, int32 [count] above.

    Raises:
        CodecError: the stream is too short.
    """
    if data.numel() < bytes_of_bits(count * bits):
        raise CodecError(
            f"a stream of {data.numel()} bytes cannot hold {count} codes of {bits} bits",
            note=f"{bytes_of_bits(count * bits)} bytes are needed",
        )
    if bits == 8:
        return data[:count]
    codes = torch.empty(count, dtype=code_dtype(bits), device=data.device)
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        block = data[first * bits // 8 : bytes_of_bits(last * bits)]
        codes[first:last] = _unpack_block(block, bits)[: last - first]
    return codes


def _pack_block(codes: Tensor, bits: int) -> Tensor:
    """Packs at most `BLOCK` codes; the result ends with the last code's last byte."""
    size = bytes_of_bits(codes.numel() * bits)
    if bits == 16:
        return codes.to(torch.int16).view(torch.uint8)
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        grid = _padded(codes.to(torch.uint8), per_byte).view(-1, per_byte)
        stream = grid[:, 0].clone()
        for index in range(1, per_byte):
            stream |= grid[:, index] << (index * bits)
        return stream
    groups = _padded(codes, CODES_PER_GROUP).view(-1, CODES_PER_GROUP).to(torch.int64)
    if bits < 8:
        words = [_joined(groups, bits)]
    else:
        # Eight codes are two halves of 4 x bits <= 60 bits; the upper half crosses the words.
        half = CODES_PER_GROUP // 2
        low, high = _joined(groups[:, :half], bits), _joined(groups[:, half:], bits)
        words = [low | (high << (half * bits)), high >> (_WORD_BITS - half * bits)]
    stream = torch.stack(words, dim=1).view(torch.uint8)[:, :bits]
    return stream.reshape(-1)[:size]


def _unpack_block(stream: Tensor, bits: int) -> Tensor:
    """Unpacks a block; returns its codes, then codes of the padding."""
    if bits == 16:
        return _padded(stream, 2).view(torch.int16).to(torch.int32) & 0xFFFF
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        grid = torch.empty(
            stream.numel(), per_byte, dtype=torch.uint8, device=stream.device
        )  # [bytes, codes of a byte]
        for index in range(per_byte):
            torch.bitwise_and(stream >> (index * bits), (1 << bits) - 1, out=grid[:, index])
        return grid.view(-1)
    groups = ceil_div(stream.numel(), bits)
    words_per_group = 1 if bits < 8 else 2
    words = torch.zeros(groups, 8 * words_per_group, dtype=torch.uint8, device=stream.device)
    words[:, :bits] = _padded(stream, bits).view(groups, bits)
    words = words.view(torch.int64)  # [groups, words of a group]
    codes = torch.empty(groups, CODES_PER_GROUP, dtype=code_dtype(bits), device=stream.device)
    if bits < 8:
        _split(words[:, 0], bits, codes)
        return codes.view(-1)
    half = CODES_PER_GROUP // 2
    carried = _WORD_BITS - half * bits
    # The shift copies the sign bit downwards; the mask takes those copies off.
    upper = ((words[:, 0] >> (half * bits)) & ((1 << carried) - 1)) | (words[:, 1] << carried)
    _split(words[:, 0], bits, codes[:, :half])
    _split(upper, bits, codes[:, half:])
    return codes.view(-1)


def _joined(codes: Tensor, bits: int) -> Tensor:
    """int64 [groups]: the codes [groups, n] side by side, the first one lowest."""
    word = codes[:, 0].clone()
    for index in range(1, codes.shape[1]):
        word |= codes[:, index] << (index * bits)
    return word


def _split(words: Tensor, bits: int, codes: Tensor) -> None:
    """Writes the codes of `words` [groups] into `codes` [groups, n]."""
    for index in range(codes.shape[1]):
        codes[:, index] = (words >> (index * bits)) & ((1 << bits) - 1)


def _padded(values: Tensor, multiple: int) -> Tensor:
    """`values` [n] with zeros up to the next multiple of `multiple`."""
    missing = -values.numel() % multiple
    if not missing:
        return values.contiguous()
    return torch.cat([values, values.new_zeros(missing)])
