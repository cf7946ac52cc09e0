"""Bare configs and documents of shapes: the same inventory without weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import SourceError

SMALL = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def coded(inventory):
    return [fact for fact in inventory.matrices() if fact.coded_by_default]


def weights(facts):
    return sum(fact.shape[0] * fact.shape[1] for fact in facts)


def test_llama_2_7b(transformers, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(transformers.LlamaConfig().to_json_string(use_diff=False))
    inventory = open_source(path)
    assert (inventory.kind, inventory.complete, inventory.layers) == ("config", False, 32)
    assert len(coded(inventory)) == 224
    assert weights(coded(inventory)) == 6_476_005_376
    assert [f.name for f in inventory.matrices() if not f.coded_by_default] == [
        "lm_head",
        "model.embed_tokens",
    ]
    assert {t.dtype for t in inventory.tensors} == {"f16"}
    assert "f16 is assumed" in inventory.notes[0]
    assert dict(inventory.files) == {"config.json": path.read_bytes()}


def test_llama_2_70b(transformers):
    config = transformers.LlamaConfig(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    inventory = open_source(config.to_dict())
    assert weights(coded(inventory)) == 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)


def test_dtype_of_the_config(transformers):
    small = SMALL
    for key, word, dtype in (
        ("dtype", "bfloat16", "bf16"),
        ("torch_dtype", "torch.float32", "f32"),
        ("dtype", "float16", "f16"),
    ):
        inventory = open_source({**small, key: word})
        assert {t.dtype for t in inventory.tensors} == {dtype}
        assert f"element type {dtype} as the config says" in inventory.notes


def test_experts_have_their_checkpoint_names(transformers):
    config = transformers.MixtralConfig(
        num_hidden_layers=1, num_local_experts=2, tie_word_embeddings=True
    )
    inventory = open_source(config.to_dict())
    names = [fact.name for fact in coded(inventory)]
    assert "model.layers.0.block_sparse_moe.experts.1.w3" in names
    assert len(names) == 4 + 2 * 3
    assert inventory.ties == {"lm_head.weight": "model.embed_tokens.weight"}


def test_folder_with_a_config_alone(transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "tokenizer.json").write_text("{}")
    inventory = open_source(tmp_path)
    assert (inventory.kind, len(coded(inventory))) == ("config", 7)
    assert [name for name, _ in inventory.files] == ["config.json", "tokenizer.json"]


def test_quantized_fp8_config_is_planned_as_plain(transformers):
    config = {
        **SMALL,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    inventory = open_source(config)
    assert "quantization_config" not in inventory.config
    assert b"quantization_config" not in dict(inventory.files)["config.json"]


SENSELESS = {
    "unknown type": ({"model_type": "no-such-model"}, "not known to transformers"),
    "type that is no word": ({"model_type": 3}, "model_type is 3, not a string"),
    "type that is nothing": ({"model_type": None}, "names no model_type"),
    "no config at all": ({"a": 1}, "neither a config nor a document of shapes"),
    "empty": ({}, "neither a config nor a document of shapes"),
    "sizes that do not divide": (
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
        "cannot build a model",
    ),
    "a word for a size": ({"model_type": "llama", "hidden_size": "big"}, "cannot build a model"),
    "negative size": ({"model_type": "llama", "hidden_size": -8}, "cannot build a model"),
    "a million layers": ({"model_type": "llama", "num_hidden_layers": 10**6}, "above 2000"),
    "a million inner layers": (
        {"model_type": "llava", "text_config": {"num_hidden_layers": 10**6}},
        "above 2000",
    ),
    "endless number of layers": (
        {"model_type": "llama", "num_hidden_layers": 10**6000},
        "more than 18 digits, above 2000",
    ),
    "a list of depths": ({"model_type": "swin", "depths": [2, 10**9]}, "above 2000"),
    "a million experts": ({"model_type": "jamba", "num_experts": 10**7}, "above 2048"),
    "a million inner experts": (
        {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 10**7}},
        "ffn_config.moe_num_experts is 10000000, above 2048",
    ),
    "experts in many layers": (
        {"model_type": "mixtral", "num_hidden_layers": 1000, "num_local_experts": 1000},
        "num_local_experts is 1,000 in 1,000 layers, above 131,072",
    ),
    "experts in as many layers as there are": (
        {"model_type": "qwen3_next", "num_experts": 2048, "num_nextn_predict_layers": 65},
        "num_experts is 2,048 in 65 layers",
    ),
    "a million labels": ({"model_type": "llama", "num_labels": 10**8}, "above 1048576"),
}


@pytest.mark.parametrize(("config", "message"), SENSELESS.values(), ids=SENSELESS.keys())
def test_senseless_config(transformers, config, message):
    with pytest.raises(SourceError, match=message) as caught:
        open_source(config)
    assert not caught.value.message.endswith(".")


def test_code_of_a_repository_is_never_run(transformers, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "boom.Config"}})
    )
    (tmp_path / "boom.py").write_text("raise SystemExit('boom')")
    with pytest.raises(SourceError, match="not known"):
        open_source(tmp_path)
    config = {**SMALL, "auto_map": {"AutoConfig": "boom.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "program code" in open_source(tmp_path).notes[0]


@pytest.mark.parametrize("name", ["s.yaml", "s.json", "s.yml"])
def test_shapes(tmp_path, name):
    document = {"shapes": {"a.10.q": [4096, 1024], "a.2.q": [8, 8], "norm": [8]}}
    (tmp_path / name).write_text(json.dumps(document))
    for source in (tmp_path / name, document):
        inventory = open_source(source)
        assert (inventory.kind, inventory.complete, inventory.files) == ("shapes", False, ())
        assert [(f.name, f.shape) for f in inventory.matrices()] == [
            ("a.2.q", (8, 8)),
            ("a.10.q", (4096, 1024)),
        ]
        assert all(f.coded_by_default for f in inventory.matrices())
        assert {t.dtype for t in inventory.tensors} == {"f16"}


def test_shapes_with_a_dtype():
    inventory = open_source({"shapes": {"a": [2, 3]}, "dtype": "bfloat16"})
    assert inventory.tensors[0].dtype == "bf16"


BAD_SHAPES = {
    "no mapping": ({"shapes": [1]}, "not a mapping of names"),
    "empty": ({"shapes": {}}, "not a mapping of names"),
    "one number": ({"shapes": {"a": 3}}, "not a shape"),
    "fraction": ({"shapes": {"a": [1.5, 2]}}, "not a shape"),
    "negative": ({"shapes": {"a": [-1, 2]}}, "not a shape"),
    "name that is a number": ({"shapes": {1: [1, 2]}}, "not a shape"),
    "bad name": ({"shapes": {"a\n": [1, 2]}}, "not a valid tensor name"),
    "another key": ({"shapes": {"a": [1, 2]}, "shape": 1}, "no key 'shape'"),
    "unknown dtype": ({"shapes": {"a": [1, 2]}, "dtype": "int3"}, "dtype is 'int3'"),
}


@pytest.mark.parametrize(("document", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES.keys())
def test_bad_shapes(document, message):
    with pytest.raises(SourceError, match=message):
        open_source(document)


BAD_YAML = {
    "syntax": ("shapes: {a: [1, 2", "not valid YAML"),
    "a list": ("- 1", "does not hold a mapping"),
    "a python object": ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    "control bytes": ("\x00", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML.keys())
def test_bad_yaml(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(tmp_path / "s.yaml")
    assert "s.yaml" in caught.value.location


def test_headers_and_shapes_need_no_torch(tmp_path):
    script = (
        "import sys\n"
        "from reallm_compiler.checkpoint import open_source\n"
        "open_source({'shapes': {'a': [2, 3]}})\n"
        "bad = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "raise SystemExit(str(bad) if bad else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
