"""NormalFloat codes are those of bitsandbytes, where it is installed (extra `comparisons`)."""

from __future__ import annotations

import warnings

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.quantizers import normal_float

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bitsandbytes = pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes is not installed (extra `comparisons`)"
    )


def their_codes(weight, block):
    packed, state = bitsandbytes.quantize_4bit(
        weight.reshape(-1, block), blocksize=block, compress_statistics=False, quant_type="nf4"
    )
    packed = packed.view(-1)
    # The first weight of a pair is in the upper half of the byte.
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1)
    return codes, state.absmax


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", [(64, 128), (8, 4096), (96, 352)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_codes_and_scales_of_nf4_are_equal(block, shape, scale, gaussian, plan_of):
    weight = gaussian(*shape, seed=block) * scale
    plan = plan_of(
        scales={"kind": "absmax", "per": "block", "block": block, "dtype": "float32"},
        quantizer={"kind": "normal_float", "bits": 4},
    )
    sections = encode_matrix(plan, weight, seed=0, source_dtype="f32").sections
    codes, absmax = their_codes(weight, block)
    assert torch.equal(sections["scales"], absmax)
    ours = unpack(sections["codes"], 4, weight.numel())
    differing = (ours != codes).nonzero()[:, 0]
    # Both divide and compare in float32; only a weight between two levels may fall either way.
    levels = normal_float.levels(4)
    middle = (levels[1:] + levels[:-1]) / 2
    unit = (weight.view(-1, block) / absmax[:, None]).view(-1)[differing].double()
    assert all(float((middle - value).abs().min()) < 1e-6 for value in unit)
    assert len(differing) <= 2


def test_decoded_weights_are_equal(gaussian, plan_of):
    weight = gaussian(64, 128)
    plan = plan_of(
        scales={"kind": "absmax", "per": "block", "block": 64, "dtype": "float32"},
        quantizer={"kind": "normal_float", "bits": 4},
    )
    sections = encode_matrix(plan, weight, seed=0, source_dtype="f32").sections
    ours = decode_matrix(plan, (64, 128), "f32", sections, dtype=torch.float32)
    packed, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs = bitsandbytes.dequantize_4bit(packed, state)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_levels_of_nf4_are_equal():
    theirs = bitsandbytes.get_4bit_type("nf4", device="cpu").double()
    torch.testing.assert_close(normal_float.levels(4), theirs, rtol=0, atol=0)


def test_loftq_is_that_of_peft(gaussian, plan_of):
    """With peft's decomposition and bitsandbytes' NF4: `peft.loftq_init`, which wants an
    accelerator, by its own steps.
    """
    loftq_utils = pytest.importorskip("peft.utils.loftq_utils", reason="peft is not installed")
    weight = gaussian(64, 128) + 2 * gaussian(64, 3, seed=1) @ gaussian(3, 128, seed=2)
    rest = weight.clone()
    for _ in range(3):
        packed, state = bitsandbytes.quantize_4bit(
            rest, blocksize=64, compress_statistics=False, quant_type="nf4"
        )
        coded = bitsandbytes.dequantize_4bit(packed, state)
        parts = loftq_utils._low_rank_decomposition(weight - coded, reduced_rank=4)
        product = parts["L"] @ parts["R"]
        rest = weight - product
    plan = plan_of(
        residual={
            "kind": "low_rank",
            "rank": 4,
            "fit": "alternating",
            "order": "quantizer_first",
            "iterations": 3,
            "dtype": "float32",
        },
        scales={"kind": "absmax", "block": 64, "dtype": "float32"},
        quantizer={"kind": "normal_float", "bits": 4},
    )
    sections = encode_matrix(plan, weight, seed=0, source_dtype="f32").sections
    assert torch.allclose(sections["l1"] @ sections["l2"], product, atol=2e-4)
    decoded = decode_matrix(plan, (64, 128), "f32", sections, dtype=torch.float32)
    assert torch.allclose(decoded, coded + product, atol=1e-3)
