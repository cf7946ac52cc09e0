"""Data-free methods of other libraries, one matrix at a time, in float16.

bitsandbytes gets a matrix as one list of blocks, which are the same ones: the CPU version of 0.50
decodes matrices wrongly whose rows are no whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Quantize = Callable[[Tensor], tuple[Tensor, int]]
"""A matrix [p, q] -> the matrix that the library gives back, and the bits that it stores."""


def stored_bits(*tensors: Tensor) -> int:
    """Bits of tensors as they are held."""
    return sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors)


def hqq(bits: int, group: int) -> Quantize:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        p, q = weight.shape
        linear = nn.Linear(q, p, bias=False)
        linear.weight.data = weight
        layer = HQQLinear(linear, config, compute_dtype=torch.float16, device="cpu")
        return layer.dequantize(), stored_bits(layer.W_q, layer.meta["scale"], layer.meta["zero"])

    return quantize


def quanto(bits: int, group: int | None) -> Quantize:
    import optimum.quanto as library

    kind = {2: library.qint2, 4: library.qint4, 8: library.qint8}[bits]

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        if group is None:
            scale = library.AbsmaxOptimizer()(weight, qtype=kind, axis=0)
            coded = library.quantize_weight(weight, kind, 0, scale, optimized=False)
            return coded.dequantize(), stored_bits(coded._data, coded._scale)
        scale, shift = library.MaxOptimizer()(weight, qtype=kind, axis=0, group_size=group)
        coded = library.quantize_weight(
            weight, kind, 0, scale, shift, group_size=group, optimized=False
        )
        return coded.dequantize(), stored_bits(coded._data._data, coded._scale, coded._shift)

    return quantize


def bitsandbytes(kind: str, block: int, double: bool) -> Quantize:
    import bitsandbytes.functional as library

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        coded, state = library.quantize_4bit(
            weight.reshape(-1, block), blocksize=block, compress_statistics=double, quant_type=kind
        )
        bits = stored_bits(coded, state.absmax)
        if double:
            bits += stored_bits(state.state2.absmax, state.offset)
        return library.dequantize_4bit(coded, state), bits

    return quantize


def bitsandbytes_int8() -> Quantize:
    import bitsandbytes.functional as library

    def quantize(weight: Tensor) -> tuple[Tensor, int]:
        coded, scale, _ = library.int8_vectorwise_quant(weight)
        return coded.float() * scale[:, None] / 127, stored_bits(coded, scale)

    return quantize


def methods() -> list[tuple[str, str, Callable[[], Quantize]]]:
    """Name, package and maker of every other method."""
    found: list[tuple[str, str, Callable[[], Quantize]]] = []
    for bits in (2, 3, 4, 8):
        for group in (32, 64, 128):
            name = f"hqq {bits} bit g{group}"
            found.append((name, "hqq", partial(hqq, bits, group)))
    for bits in (2, 4):
        for group in (32, 64, 128):
            name = f"quanto qint{bits} g{group}"
            found.append((name, "optimum-quanto", partial(quanto, bits, group)))
    found.append(("quanto qint8", "optimum-quanto", partial(quanto, 8, None)))
    for kind in ("nf4", "fp4"):
        for block in (64, 128):
            for double in (False, True):
                name = f"bitsandbytes {kind} b{block}" + (" double" if double else "")
                found.append((name, "bitsandbytes", partial(bitsandbytes, kind, block, double)))
    found.append(("bitsandbytes int8", "bitsandbytes", bitsandbytes_int8))
    return found
