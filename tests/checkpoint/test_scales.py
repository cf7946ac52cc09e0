"""fp8 weights with scales are read as weights; other quantized checkpoints are refused."""

from __future__ import annotations

import json
import struct

import pytest

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import SourceError
from reallm_formats.dtypes import section_bytes

SIZES = {"F8_E4M3": "f8_e4m3", "F32": "f32", "BF16": "bf16", "U8": "u8", "I32": "i32"}


def write(folder, tensors, **config):
    """A checkpoint of zeros: name -> (type, shape)."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = section_bytes(SIZES[dtype], shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    return folder


FINE = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FP8 = ("F8_E4M3", [256, 200])
BF16 = ("BF16", [256, 200])
SCALES = {
    "per block": ("w.weight_scale_inv", [2, 2], FINE, (128, 128)),
    "per tensor": ("w.weight_scale", [], {"quant_method": "fp8"}, (256, 200)),
    "per tensor, one number": ("w.weight_scale", [1], None, (256, 200)),
    "per row": ("w.weight_scale", [256, 1], {"quant_method": "fbgemm_fp8"}, (1, 200)),
    "per row, flat": ("w.weight_scale", [256], None, (1, 200)),
    "per column": ("w.weight_scale", [1, 200], None, (256, 1)),
    "compressed tensors": (
        "w.weight_scale",
        [256, 1],
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8}}},
        },
        (1, 200),
    ),
}


@pytest.mark.parametrize(("name", "shape", "stated", "block"), SCALES.values(), ids=SCALES.keys())
def test_scaled_weight(tmp_path, name, shape, stated, block):
    config = {"quantization_config": stated} if stated else {}
    tensors = {"w.weight": FP8, name: ("F32", shape), "w.input_scale": ("F32", [])}
    inventory = open_source(write(tmp_path, tensors, torch_dtype="bfloat16", **config))
    (spec,) = inventory.tensors
    assert (spec.name, spec.dtype, spec.stored) == ("w.weight", "bf16", "f8_e4m3")
    assert spec.stored_bytes == 256 * 200
    assert spec.scale.tensor.name == name
    assert spec.scale.tensor.begin > spec.begin
    assert spec.scale.block == block
    grid = tuple(-(-extent // size) for extent, size in zip(spec.shape, block, strict=True))
    assert spec.scale.tensor.shape == grid
    assert spec.scale.tensor.stored_bytes == section_bytes("f32", shape)
    assert inventory.config == {"model_type": "x", "torch_dtype": "bfloat16"}
    assert json.loads(dict(inventory.files)["config.json"]) == inventory.config
    assert "1 fp8 weights are read with their scales" in inventory.notes[-1]
    (matrix,) = inventory.matrices()
    assert (matrix.dtype, matrix.coded_by_default) == ("bf16", True)


def test_scaled_experts(tmp_path):
    tensors = {
        "mlp.experts.down_proj": ("F8_E4M3", [3, 256, 130]),
        "mlp.experts.down_proj_scale_inv": ("F32", [3, 2, 2]),
    }
    inventory = open_source(write(tmp_path, tensors, quantization_config=FINE))
    (spec,) = inventory.tensors
    assert spec.scale.block == (128, 128)
    assert spec.scale.tensor.shape == (3, 2, 2)
    assert len(inventory.matrices()) == 3


def test_plain_fp8_stays(tmp_path):
    inventory = open_source(write(tmp_path, {"w.weight": FP8}))
    (spec,) = inventory.tensors
    assert (spec.dtype, spec.stored, spec.scale) == ("f8_e4m3", "", None)
    assert inventory.notes == ()
    assert inventory.matrices()[0].coded_by_default


def test_type_after_scaling_is_the_configs(tmp_path):
    tensors = {"w.weight": FP8, "w.weight_scale": ("F32", [])}
    assert open_source(write(tmp_path, tensors, dtype="float16")).tensors[0].dtype == "f16"
    assert open_source(write(tmp_path, tensors)).tensors[0].dtype == "bf16"


UNUSABLE = {
    "no scales": ({"w.weight": FP8}, "its scales are missing"),
    "grid of another size": (
        {"w.weight": FP8, "w.weight_scale_inv": ("F32", [3, 2])},
        "do not fit",
    ),
    "three axes": ({"w.weight": FP8, "w.weight_scale_inv": ("F32", [2, 2, 1])}, "do not fit"),
    "integer scales": ({"w.weight": FP8, "w.weight_scale_inv": ("U8", [2, 2])}, "type u8"),
}


@pytest.mark.parametrize(("tensors", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_scales(tmp_path, tensors, message):
    with pytest.raises(SourceError, match=message) as caught:
        open_source(write(tmp_path, tensors, quantization_config=FINE))
    assert caught.value.hint


def test_blocks_need_a_stated_size(tmp_path):
    tensors = {"w.weight": FP8, "w.weight_scale": ("F32", [2, 2])}
    with pytest.raises(SourceError, match="no weight_block_size is stated"):
        open_source(write(tmp_path, tensors))


GROUPS = {"g": {"weights": {"type": "float", "num_bits": 8, "block_structure": [128, 128]}}}
BLOCKS = {
    "nested": {"text_config": {"quantization_config": FINE, "hidden_size": 8}},
    "deeper": {"a_config": {"b_config": {"quantization_config": FINE}}},
    "in a list": {"parts": [{"quantization_config": FINE}]},
    "compressed tensors": {
        "quantization_config": {"quant_method": "compressed-tensors", "config_groups": GROUPS}
    },
    "modelopt": {
        "quantization_config": {**FINE, "quant_method": "modelopt", "quant_algo": "FP8"},
    },
}


@pytest.mark.parametrize("config", BLOCKS.values(), ids=BLOCKS.keys())
def test_statement_wherever_it_stands(tmp_path, config):
    """The size of blocks is found, and what is carried says nothing of fp8 any more."""
    tensors = {"w.weight": FP8, "w.weight_scale_inv": ("F32", [2, 2])}
    inventory = open_source(write(tmp_path, tensors, **config))
    assert inventory.tensors[0].scale.block == (128, 128)
    carried = dict(inventory.files)["config.json"].decode()
    assert "quant" not in carried
    assert "fp8" not in carried
    assert ("hidden_size" in carried) == ("hidden_size" in str(config))


def test_statement_without_a_single_fp8_weight(tmp_path):
    """Weights that were written as bf16, under a config that was not put right."""
    inventory = open_source(write(tmp_path, {"w.weight": BF16}, quantization_config=FINE))
    assert inventory.config == {"model_type": "x"}
    assert "none is" in inventory.notes[-1]
