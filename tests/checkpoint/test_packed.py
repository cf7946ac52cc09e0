"""Checkpoints of other quantization methods: refused by what the config or the tensors show."""

from __future__ import annotations

import json
import struct

import pytest

from reallm_compiler.checkpoint import open_source
from reallm_compiler.checkpoint.headers import DTYPES
from reallm_compiler.errors import SourceError
from reallm_formats.dtypes import section_bytes


def write(folder, tensors, **config):
    """A checkpoint of zeros: name -> "TYPE 4x6"."""
    header, offset = {}, 0
    for name, text in tensors.items():
        dtype, _, extents = text.partition(" ")
        shape = [int(extent) for extent in extents.split("x") if extent]
        size = section_bytes(DTYPES[dtype], shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    return folder


def refusal(folder):
    with pytest.raises(SourceError, match="quantized already") as caught:
        open_source(folder)
    assert "full-precision" in caught.value.hint
    return caught.value


def groups(**weights):
    return {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}


STATED = [
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "mxfp4"},
    {"quant_method": "hqq"},
    {"quant_method": "of next year"},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    {"quant_method": ["fp8"]},
    {"quant_algo": "W4A16_AWQ"},
    groups(type="int", num_bits=4),
    groups(type="float", num_bits=4),
    {"quant_method": "compressed-tensors"},
    {},
]
LOCATIONS = {
    "quantization_config": lambda stated: {"quantization_config": stated},
    "compression_config": lambda stated: {"compression_config": stated},
    "text_config.quantization_config": lambda stated: {
        "text_config": {"quantization_config": stated}
    },
    "thinker_config.text_config.quantization_config": lambda stated: {
        "thinker_config": {"text_config": {"quantization_config": stated}}
    },
}


@pytest.mark.parametrize("stated", STATED, ids=str)
@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("bare", [False, True])
def test_quantized_config(tmp_path, stated, location, bare):
    write(tmp_path, {"w.weight": "BF16 4x4"}, **LOCATIONS[location](stated))
    error = refusal(tmp_path / "config.json" if bare else tmp_path)
    assert error.location == f"config.json: {location}"


def test_quantized_config_of_mlx(tmp_path):
    write(tmp_path, {"w.weight": "BF16 4x4"}, quantization={"group_size": 64, "bits": 4})
    assert "MLX" in refusal(tmp_path).message


@pytest.mark.parametrize("word", [None, [], "none", 4, True])
def test_what_states_nothing(tmp_path, word):
    config = {"quantization_config": word, "text_config": {"quantization": word}}
    assert open_source(write(tmp_path, {"w.weight": "BF16 4x4"}, **config)).notes == ()


FP8 = {"w.weight": "F8_E4M3 4x4", "w.weight_scale": "F32"}
LOST = {
    "online rotations": ({**groups(type="float", num_bits=8), "transform_config": {"a": 1}}, None),
    "sparse": ({"quant_method": "fp8", "sparsity_config": {"format": "sparse-24-bitmask"}}, None),
    "zero points": (groups(type="float", num_bits=8, symmetric=False), None),
    "hadamard": ({"quant_method": "fp8", "online_hadamard": True}, None),
    "beside it": (None, {"transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}}),
}


@pytest.mark.parametrize(("stated", "beside"), LOST.values(), ids=LOST.keys())
def test_fp8_with_a_part_that_is_not_in_the_weights(tmp_path, stated, beside):
    config = {"quantization_config": stated} if stated else beside
    with pytest.raises(SourceError, match="needs more than its weights") as caught:
        open_source(write(tmp_path, FP8, **config))
    assert caught.value.location.startswith("config.json: ")


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "fp8", "sparsity_config": {"format": "dense"}, "transform_config": {}},
        groups(type="float", num_bits=8, symmetric=True),
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_algo": "FP8"},
    ],
)
def test_fp8_that_is_read(tmp_path, stated):
    (spec,) = open_source(write(tmp_path, FP8, quantization_config=stated)).tensors
    assert spec.scale is not None


L = "model.layers.0.mlp.up_proj"
PACKED = {
    "gptq": ({f"{L}.qweight": "I32 2x8"}, "GPTQ"),
    "gptq order": ({f"{L}.g_idx": "I32 8"}, "GPTQ"),
    "awq": ({f"{L}.qzeros": "I32 2x8"}, "AWQ"),
    "compressed-tensors": ({f"{L}.weight_packed": "I32 4x2"}, "compressed-tensors"),
    "compressed-tensors int8": (
        {f"{L}.weight": "I8 4x8", f"{L}.weight_scale": "BF16 4x1"},
        "i8 codes",
    ),
    "nvfp4": ({f"{L}.weight": "U8 4x4", f"{L}.weight_scale_2": "F32"}, "u8 codes|NVFP4"),
    "mxfp4": ({"model.layers.0.mlp.experts.up_proj_blocks": "U8 2x4x2x16"}, "MXFP4"),
    "bitsandbytes": ({f"{L}.weight": "U8 16x1", f"{L}.weight.absmax": "F32 1"}, "u8|bitsandbytes"),
    "bitsandbytes state": (
        {f"{L}.weight.quant_state.bitsandbytes__nf4": "U8 80"},
        "bitsandbytes",
    ),
    "bitsandbytes int8": ({f"{L}.weight": "I8 4x8", f"{L}.SCB": "F32 4"}, "i8|bitsandbytes"),
    "eetq": ({f"{L}.weight": "I8 4x8", f"{L}.weight_scales": "F16 4"}, "i8 codes"),
    "quanto": ({f"{L}.weight._data": "I8 4x8", f"{L}.weight._scale": "BF16 4x1"}, "quanto"),
    "quanto fp8": ({f"{L}.weight._data": "F8_E4M3 4x8"}, "quanto"),
    "torchao": ({f"{L}._weight_qdata": "I8 4x8", f"{L}._weight_scale": "F32 4x1"}, "torchao"),
    "torchao fp8": ({f"{L}._weight_qdata": "F8_E4M3 4x8"}, "torchao"),
    "hqq": ({f"{L}.W_q": "U8 4x8", f"{L}.scale": "F16 4x1"}, "HQQ"),
    "aqlm": ({f"{L}.codes": "I8 4x2x1", f"{L}.codebooks": "F16 1x256x1x8"}, "AQLM|i8"),
    "exl3": ({f"{L}.trellis": "I16 1x1x48"}, "EXL3"),
    "mlx": ({f"{L}.weight": "U32 4x2", f"{L}.scales": "F16 4x1", f"{L}.biases": "F16 4x1"}, "MLX"),
    "bitnet": ({f"{L}.weight": "U8 1x8", f"{L}.weight_scale": "BF16 1"}, "u8 codes"),
    "no scales at all": ({f"{L}.weight": "I8 4x8"}, "i8 codes"),
    "experts": ({"model.layers.0.mlp.experts.down_proj": "I8 2x4x8"}, "i8 codes"),
    "embedding": ({"model.embed_tokens.weight": "U8 4x8"}, "u8 codes"),
    "a new method": ({f"{L}.codes": "U8 4x8", f"{L}.block_scales": "F16 4x1"}, "u8 codes"),
    "a new fp8": ({f"{L}.weight": "F8_E4M3 4x8", f"{L}.scales": "F32 4x1"}, "under names"),
    "integers as floats": ({f"{L}.weight": "F16 4x8", f"{L}.weight_scale": "F16 4x1"}, "scales it"),
}


@pytest.mark.parametrize(("tensors", "method"), PACKED.values(), ids=PACKED.keys())
def test_packed_tensors(tmp_path, tensors, method):
    """Beside weights that are none, and under a config that says nothing."""
    more = {"model.norm.weight": "BF16 4", "lm_head.weight": "BF16 8x4"}
    error = refusal(write(tmp_path, {**tensors, **more}))
    assert any(word in error.message for word in method.split("|"))
    assert error.location.startswith("model.safetensors: model.")


PLAIN = {
    "positions": {"embeddings.position_ids": "I64 1x16"},
    "masks": {"h.0.attn.bias": "U8 1x1x8x8", "h.0.attn.masked_bias": "F32"},
    "relative positions beside a scale": {
        "layers.0.attn.relative_position_index": "I64 16x16",
        "layers.0.attn.logit_scale": "F32 4x1x1",
    },
    "a count": {"encoder.bn.num_batches_tracked": "I64"},
    "tokens by expert": {"layers.0.mlp.gate.tid2eid": "I64 32x2"},
    "cached scales": {"layers.0.self_attn.k_scale": "F32", "layers.0.a.k_proj.k_scale": "F32"},
    "a gain": {"logit_scale": "F32", "layers.0.gamma.scale": "F32 8", "x.input_scale": "F32"},
    "fp8 without scales": {"layers.0.x.weight": "F8_E4M3 4x8"},
}


@pytest.mark.parametrize("tensors", PLAIN.values(), ids=PLAIN.keys())
def test_integers_and_scales_of_plain_models(tmp_path, tensors):
    found = open_source(write(tmp_path, {"layers.0.up.weight": "BF16 8x8", **tensors}))
    assert {spec.name for spec in found.tensors} == {"layers.0.up.weight", *tensors}
