"""Folders that stay packed in transformers: as `reallm.load`, saved again, decoded, refused."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

import reallm_compiler as reallm
from reallm_compiler.kernels.choose import only_plain
from reallm_compiler.on_import import when_imported
from reallm_compiler.runtime.packed import PackedLinear
from reallm_compiler.runtime.weight import PackedWeight

PLANS = {
    "nf4": None,
    "trellis": {
        "transform": [{"kind": "hadamard"}],
        "residual": {"kind": "low_rank", "rank": 2, "dtype": "float16"},
        "scales": {"kind": "rms", "per": "row"},
        "quantizer": {"kind": "trellis", "bits": 2, "state_bits": 4, "iterations": 1, "paths": 2},
        "dora": True,
        "share": "all",
    },
}
IDS = torch.arange(2, 22)[None]


@pytest.fixture(scope="module", params=PLANS)
def exported(request, archive_of, tmp_path_factory):
    archive = archive_of(request.param, PLANS[request.param])
    path = tmp_path_factory.mktemp("exported") / request.param
    report = reallm.export(archive, path, to="hf", progress=False)
    assert (report.path, report.dense) == (path, ())
    return archive, path


def logits(model):
    with torch.no_grad(), only_plain():
        return model(IDS).logits


def packed(model):
    return {name: p for name, p in model.named_parameters() if isinstance(p, PackedWeight)}


@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_it_is_what_load_gives(exported, device_map):
    archive, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    assert len(packed(model)) == 14
    assert type(model.model.layers[0].mlp.up_proj) is PackedLinear
    assert torch.equal(logits(model), logits(reallm.load(archive, mode="packed")[0]))
    dense, _ = reallm.load(archive)
    for name, weight in packed(model).items():
        assert torch.equal(weight.dequantize(), dense.get_parameter(name)), name


def test_all_sections_are_bytes_and_codes_have_the_name_of_the_weight(exported):
    archive, folder = exported
    tensors = load_file(folder / "model.safetensors")
    with reallm.open(archive) as opened:
        name = opened.names[0]
        layout, sections = opened.stored(name)
        for spec in layout.sections:
            key = f"{name}.weight" + ("" if spec.role == "codes" else f"_{spec.role}")
            data = sections[spec.role].contiguous().view(-1).view(torch.uint8)
            assert torch.equal(tensors[key], data), key
    assert {tensors[key].dtype for key in tensors if name in key} == {torch.uint8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_type_changes_no_section(exported, dtype):
    archive, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert torch.equal(logits(model), logits(reallm.load(archive, mode="packed", dtype=dtype)[0]))


def test_saved_again_it_is_the_same_folder(exported, tmp_path):
    _, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    stated = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path)]
    assert stated[0]["quantization_config"] == stated[1]["quantization_config"]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_dequantize_gives_the_dense_model(exported, tmp_path):
    archive, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder).dequantize()
    assert not packed(model)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    dense, _ = reallm.load(archive)
    assert torch.equal(logits(model), logits(dense))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(dense))


def test_a_model_without_head(exported):
    archive, folder = exported
    model = AutoModel.from_pretrained(folder)
    assert len(packed(model)) == 14
    whole, _ = reallm.load(archive, mode="packed")
    with torch.no_grad(), only_plain():
        assert torch.equal(model(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)


def test_what_was_written_to_is_not_saved_as_codes(exported, tmp_path):
    _, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[0].mlp.up_proj.weight.data += 1
    with pytest.raises(ValueError, match="no longer packed"):
        model.save_pretrained(tmp_path)


def test_weights_on_a_disk_and_newer_folders_are_refused(exported, tmp_path):
    _, folder = exported
    with pytest.raises(ValueError, match="not put on a disk"):
        AutoModelForCausalLM.from_pretrained(
            folder, device_map={"model": "cpu", "lm_head": "disk"}, offload_folder=tmp_path
        )
    newer = shutil.copytree(folder, tmp_path / "newer")
    config = json.loads((newer / "config.json").read_text())
    config["quantization_config"]["version"] = 2
    (newer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="newer reallm: version 2"):
        AutoModelForCausalLM.from_pretrained(newer)


def test_a_coded_embedding_that_the_head_is_tied_to(tiny_llama, tmp_path):
    recipe = {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 8},
        },
        "rules": [{"role": ["embedding"], "set": {}}],
    }
    archive = tmp_path / "tied.reallm"
    reallm.compile(recipe, model=tiny_llama, output=archive, device="cpu", progress=False)
    reallm.export(archive, tmp_path / "folder", to="hf", progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.lm_head.weight, PackedWeight)
    assert torch.equal(logits(model), logits(reallm.load(archive, mode="packed")[0]))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert model.dequantize().lm_head.weight is model.model.embed_tokens.weight


def test_layers_that_are_stored_transposed(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    archive, folder = tmp_path / "g.reallm", tmp_path / "folder"
    reallm.compile(
        {"reallm": 1, "defaults": {"quantizer": {"kind": "uniform", "bits": 4}}}
        | {
            "defaults": {"scales": {"kind": "absmax", "block": 32}}
            | {"quantizer": {"kind": "uniform", "bits": 4}}
        },
        model=tmp_path / "gpt2",
        output=archive,
        device="cpu",
        progress=False,
    )
    reallm.export(archive, folder, to="hf", progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(packed(model)) == 4
    assert torch.equal(logits(model), logits(reallm.load(archive, mode="packed")[0]))


def test_without_reallm_it_is_refused_and_with_it_loaded(archive_of, tmp_path):
    folder = reallm.export(archive_of("nf4"), tmp_path / "out", to="hf", progress=False).path
    script = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        "try:\n"
        "    AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "except Exception as error:\n"
        "    print('refused:', error)\n"
        "assert not any('reallm' in name for name in sys.modules)\n"
        "import reallm_compiler\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(model.model.layers[0].mlp.up_proj.weight).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.split("PackedWeight")
    assert "refused:" in refused
    assert "mismatch" in refused
    assert loaded == "\n"


def test_an_action_waits_for_its_module(tmp_path, monkeypatch):
    (tmp_path / "awaited_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "awaited_module", raising=False)
    seen, finders = [], list(sys.meta_path)
    when_imported("awaited_module", lambda: seen.append(sys.modules["awaited_module"].value))
    assert seen == []
    awaited_module = importlib.import_module("awaited_module")
    assert seen == [1]
    assert sys.meta_path == finders
    assert importlib.reload(awaited_module).value == 1
    when_imported("awaited_module", lambda: seen.append(2))
    assert seen == [1, 2]


def test_the_card_says_sizes_and_what_was_measured(archive_of, tmp_path):
    quality = {"perplexity": 12.5, "kl": 0.01, "text": "some/held.txt", "window": 128}
    folder = tmp_path / "out"
    reallm.export(archive_of("nf4"), folder, to="hf", quality=quality, progress=False)
    card = (folder / "README.md").read_text()
    size = archive_of("nf4").stat().st_size
    assert f"| archive | {size:,} bytes |" in card
    assert "| perplexity | 12.5 |" in card
    assert "`held.txt`" in card
    assert "import reallm_compiler" in card
