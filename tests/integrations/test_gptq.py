"""Integers in GPTQ's layout: by the format's definition, and by GPTQModel where it is there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import reallm_compiler as reallm
from reallm_compiler.integrations.gptq import GptqLayout
from reallm_compiler.integrations.grids import Grid, UnfitError

FORMS = {"symmetric": (4, 32), "rows": (2, -1), "sorted": (4, 64)}


@pytest.fixture(scope="module", params=FORMS)
def exported(request, archive_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / request.param
    reallm.export(archive_of(request.param), path, to="gptq", progress=False)
    return request.param, path


def unpacked(packed, bits, dim):
    """Codes that lie side by side in words along a dimension, the lowest bits first."""
    words = packed.long() & 0xFFFFFFFF
    parts = [(words >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
    return torch.stack(parts, dim=dim + 1).flatten(dim, dim + 1)


def test_the_layout_by_its_definition(archive_of, exported):
    name, folder = exported
    bits, group = FORMS[name]
    tensors = load_file(folder / "model.safetensors")
    with reallm.open(archive_of(name)) as archive:
        for layer in archive.names:
            weight = archive.matrix(layer)
            codes = unpacked(tensors[f"{layer}.qweight"], bits, 0)  # [q, p]
            zeros = unpacked(tensors[f"{layer}.qzeros"], bits, 1) + 1  # [groups, p]
            assert (zeros == 2 ** (bits - 1)).all()
            index = tensors[f"{layer}.g_idx"].long()  # [q]
            scales = tensors[f"{layer}.scales"].double()  # [groups, p]
            values = (codes - zeros[index]).double() * scales[index]
            assert torch.equal(values.t().bfloat16(), weight)
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (stated["bits"], stated["group_size"], stated["sym"]) == (bits, group, True)
    assert stated["desc_act"] is (name == "sorted")


@pytest.mark.filterwarnings("ignore")  # of the library
def test_the_library_loads_the_same_weights(archive_of, exported):
    gptqmodel = pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    name, folder = exported
    backend = gptqmodel.BACKEND.TORCH  # for the CPU; other kernels are compiled when first run
    loaded = gptqmodel.GPTQModel.load(folder, backend=backend, device="cpu")
    with reallm.open(archive_of(name)) as archive:
        for layer in archive.names:
            theirs = loaded.model.get_submodule(layer).dequantize_weight().t()
            assert torch.equal(theirs, archive.matrix(layer))


def test_layers_of_one_width_are_asked_for(tmp_path, model_folder):
    narrow = {
        "scales": {"kind": "affine", "code_bits": 4, "symmetric": True, "dtype": "bfloat16"},
        "quantizer": {"kind": "uniform", "bits": 4},
    }
    wide = {
        "scales": {"kind": "affine", "code_bits": 8, "symmetric": True, "dtype": "bfloat16"},
        "quantizer": {"kind": "uniform", "bits": 8},
    }
    recipe = {
        "reallm": 1,
        "defaults": narrow,
        "rules": [{"match": "*.down_proj", "set": wide}],
    }
    mixed, out = tmp_path / "mixed.reallm", tmp_path / "out"
    reallm.compile(recipe, model=model_folder, output=mixed, device="cpu", progress=False)
    with pytest.raises(reallm.ExportError, match="they differ in bits or in group size"):
        reallm.export(mixed, out, to="gptq", progress=False)
    reallm.export(mixed, out, to="compressed-tensors", progress=False)
    groups = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(len(group["targets"]) for group in groups.values()) == [2, 12]


def test_a_zero_point_of_0_is_refused():
    grid = Grid(
        codes=torch.zeros(32, 32, dtype=torch.uint8),
        bits=4,
        levels=torch.arange(16.0),
        scale=torch.ones(32),
        offset=torch.zeros(32),
        group=32,
        dtype=torch.bfloat16,
    )
    with pytest.raises(UnfitError, match="a zero point is 0, and the format stores them less 1"):
        GptqLayout().add("layer", grid)
