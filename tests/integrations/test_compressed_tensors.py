"""Integers in compressed-tensors' layout: by the format's definition, and by the library."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

import reallm_compiler as reallm

NAMES = ("symmetric", "asymmetric", "rows")
FORMS = {"symmetric": (4, 32), "asymmetric": (8, 64), "rows": (2, None)}


@pytest.fixture(scope="module", params=NAMES)
def exported(request, archive_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / request.param
    reallm.export(archive_of(request.param), path, to="compressed-tensors", progress=False)
    return request.param, path


def unpacked(packed, bits):
    """Codes of rows of words [n, words], the lowest bits first: [n, 32 words / bits]."""
    words = packed.numpy().view("uint32").astype("uint64")
    parts = [(words >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
    codes = torch.stack([torch.from_numpy(part.astype("int64")) for part in parts], dim=2)
    return codes.flatten(1)


def test_the_layout_by_its_definition(archive_of, exported):
    name, folder = exported
    bits, group = FORMS[name]
    tensors = load_file(folder / "model.safetensors")
    with reallm.open(archive_of(name)) as archive:
        for layer in archive.names:
            weight = archive.matrix(layer)
            p, q = weight.shape
            codes = unpacked(tensors[f"{layer}.weight_packed"], bits)
            scale = tensors[f"{layer}.weight_scale"]
            assert scale.dtype == torch.bfloat16
            assert tensors[f"{layer}.weight_shape"].tolist() == [p, q]
            zeros = torch.full(scale.shape, 2 ** (bits - 1))
            if name == "asymmetric":
                packed = tensors[f"{layer}.weight_zero_point"]
                zeros = unpacked(packed.t().contiguous(), bits).t()
            each = q // scale.shape[1]
            assert each == (group or q)
            steps = codes - zeros.repeat_interleave(each, 1)
            values = steps.double() * scale.double().repeat_interleave(each, 1)
            assert torch.equal(values.bfloat16(), weight)
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert stated["ignore"] == ["lm_head"]
    weights = stated["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"]) == (bits, group)
    assert weights["symmetric"] is (name != "asymmetric")


def test_the_library_loads_the_same_weights(archive_of, exported):
    pytest.importorskip(
        "compressed_tensors", reason="compressed-tensors is not installed (extra `comparisons`)"
    )
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    name, folder = exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    with reallm.open(archive_of(name)) as archive:
        for layer in archive.names:
            assert torch.equal(model.get_submodule(layer).weight, archive.matrix(layer))
    dense, _ = reallm.load(archive_of(name))
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        ({"kind": "affine", "code_bits": 4, "dtype": "float32"}, "are no bfloat16 numbers"),
        ({"kind": "minmax"}, "its levels are no integers"),
        ({"kind": "affine", "code_bits": 4, "block": 128}, "do not divide its rows of 192"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(archive_of, tmp_path, scales, reason):
    plan = {"scales": scales, "quantizer": {"kind": "uniform", "bits": 4}}
    archive = archive_of(reason, plan)
    with pytest.raises(reallm.ExportError) as caught:
        reallm.export(archive, tmp_path / "out", to="compressed-tensors", progress=False)
    assert reason in caught.value.note


def test_scales_in_float16_make_a_model_in_float16(archive_of, tmp_path):
    plan = {
        "scales": {"kind": "affine", "code_bits": 4, "dtype": "float16"},
        "quantizer": {"kind": "uniform", "bits": 4},
    }
    archive, out = archive_of("half", plan), tmp_path / "out"
    reallm.export(archive, out, to="compressed-tensors", progress=False)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    tensors = load_file(out / "model.safetensors")
    with reallm.open(archive) as opened:
        name = opened.names[0]
        scale = tensors[f"{name}.weight_scale"]
        assert scale.dtype == torch.float16
        zeros = unpacked(tensors[f"{name}.weight_zero_point"].t().contiguous(), 4).t()
        codes = unpacked(tensors[f"{name}.weight_packed"], 4)
        values = (codes - zeros.repeat_interleave(64, 1)).half() * scale.repeat_interleave(64, 1)
        assert torch.equal(values, opened.matrix(name, dtype=torch.float16))


def test_coded_embeddings_are_decoded_in_the_type_to_run_in(model_folder, tmp_path):
    scales = {"kind": "affine", "code_bits": 4, "symmetric": True, "dtype": "float16"}
    recipe = {
        "reallm": 1,
        "defaults": {"scales": scales, "quantizer": {"kind": "uniform", "bits": 4}},
        "rules": [{"role": "embedding", "set": {}}],
    }
    archive, out = tmp_path / "e.reallm", tmp_path / "out"
    reallm.compile(recipe, model=model_folder, output=archive, device="cpu", progress=False)
    report = reallm.export(archive, out, to="compressed-tensors", progress=False)
    assert report.dense == ("model.embed_tokens",)
    tensors = load_file(out / "model.safetensors")
    with reallm.open(archive) as opened:
        name = "model.embed_tokens.weight"
        assert torch.equal(tensors[name], opened.tensor(name, dtype=torch.float16))
        assert torch.equal(tensors["model.norm.weight"], opened.tensor("model.norm.weight"))


def test_groups_of_sorted_columns_are_refused(archive_of, tmp_path):
    with pytest.raises(reallm.ExportError) as caught:
        reallm.export(
            archive_of("sorted"), tmp_path / "out", to="compressed-tensors", progress=False
        )
    assert "its groups are of columns in another order" in caught.value.note


def test_other_widths_are_refused(archive_of, tmp_path):
    plan = {
        "scales": {"kind": "affine", "code_bits": 3, "dtype": "bfloat16"},
        "quantizer": {"kind": "uniform", "bits": 3},
    }
    with pytest.raises(reallm.ExportError) as caught:
        reallm.export(
            archive_of("three", plan), tmp_path / "out", to="compressed-tensors", progress=False
        )
    assert "its codes have 3 bits: use 2, 4, 8" in caught.value.note
