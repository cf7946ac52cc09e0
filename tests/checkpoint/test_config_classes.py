"""A bare config is planned as the model of its class, or refused with the reason.

`configs/` holds small configs of many families and ages. Each is compared with what the class
that it names writes with `save_pretrained`: every name, every shape, every tie. Nothing here may
open a connection.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from reallm_compiler.checkpoint import open_source
from reallm_compiler.checkpoint.headers import read_header
from reallm_compiler.errors import SourceError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}
CLASSES = {
    "gemma3_text_of_a_pair": "Gemma3ForCausalLM",
    "llama_without_architectures": "LlamaForCausalLM",
    "mpt_other_capitals": "MptForCausalLM",
    "whisper_without_architectures": "WhisperForConditionalGeneration",
}
"""The class, where it is not the one that `architectures` spells out."""
REFUSED = {
    "refused_another_type_of_value": "cannot build a model from this .*ffn_act_fn.*: TypeError",
    "refused_backbone_by_name": "names a backbone that transformers would look up on the Hub",
    "refused_class_of_another_config": "LlamaForCausalLM, which takes a LlamaConfig, but",
    "refused_classes_no_words": "architectures is not a list of class names",
    "refused_inner_backbone_by_name": "names a backbone that transformers would look up",
    "refused_no_depth": r"does not state n_layer(\n|$)",
    "refused_no_sizes": r"does not state hidden_size, num_hidden_layers, vocab_size(\n|$)",
    "refused_no_text_config": "does not state text_config.hidden_size, text_config.num_hidden",
    "refused_no_type": "names no model_type",
    "refused_no_vision_sizes": "does not state depths, embed_dim",
    "refused_packed": "quantized already",
    "refused_text_under_another_name": "does not state text_config.hidden_size",
    "refused_timm_backbone": "names a backbone that transformers would look up on the Hub",
    "refused_too_many_experts": "num_local_experts is 500 in 500 layers",
    "refused_unknown_class": "'LlamaForEverything', which transformers .* does not have",
    "refused_unknown_type": "model type 'stranger' is not known",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_arguments, **_keywords):
        pytest.fail("a config reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_refusal_has_its_config():
    assert {name for name in CONFIGS if name.startswith("refused_")} == set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_cannot_be_planned_is_refused(name):
    with pytest.raises(SourceError) as caught:
        open_source(CONFIGS[name])
    assert caught.match(REFUSED[name])
    assert str(CONFIGS[name]) in str(caught.value) or "config.json" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
def test_a_config_is_planned_as_its_class_is_saved(name, tmp_path):
    content = json.loads(CONFIGS[name].read_text())
    bare = open_source(CONFIGS[name])
    cls = getattr(transformers, CLASSES.get(name) or content["architectures"][0])
    for key in ("attn_implementation", "auto_map", "quantization_config", "torch_dtype"):
        content.pop(key, None)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(content))
    cls(cls.config_class.from_pretrained(plain)).save_pretrained(tmp_path / "saved")
    saved = read_header(tmp_path / "saved" / "model.safetensors", "model.safetensors")
    assert {t.name: t.shape for t in bare.tensors} == {t.name: t.shape for t in saved}
    folder = open_source(tmp_path / "saved")
    assert bare.ties == folder.ties
    assert folder.duplicates == ()
    assert [m.name for m in bare.matrices()] == [m.name for m in folder.matrices()]
