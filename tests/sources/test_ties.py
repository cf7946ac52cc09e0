"""Ties: from the config and the names, never from the values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.sources import open_source
from reallm_compiler.sources.ties import find_ties, says_tied

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"

CASES = {
    "said, head not stored": ("llama", True, [EMBED], {HEAD: EMBED}),
    "said, both stored": ("llama", True, [EMBED, HEAD], {HEAD: EMBED}),
    "said, head alone": ("llama", True, [HEAD, "model.norm.weight"], {EMBED: HEAD}),
    "denied": ("llama", False, [EMBED, HEAD], {}),
    "not said, a type that does not tie": ("llama", None, [EMBED, HEAD], {}),
    "not said, a type that ties": ("gemma", None, [EMBED], {HEAD: EMBED}),
    "gpt2 of the Hub": ("gpt2", None, ["wte.weight"], {HEAD: "wte.weight"}),
    "gpt2 saved": ("gpt2", None, ["transformer.wte.weight"], {HEAD: "transformer.wte.weight"}),
    "gpt2 untied": ("gpt2", False, ["wte.weight"], {}),
    "neox": (
        "gpt_neox",
        True,
        ["gpt_neox.embed_in.weight", "embed_out.weight"],
        {"embed_out.weight": "gpt_neox.embed_in.weight"},
    ),
    "neox untied": ("gpt_neox", None, ["gpt_neox.embed_in.weight", "embed_out.weight"], {}),
    "opt": (
        "opt",
        None,
        ["model.decoder.embed_tokens.weight"],
        {HEAD: "model.decoder.embed_tokens.weight"},
    ),
    "vision and language": (
        "llava",
        True,
        ["model.language_model.embed_tokens.weight"],
        {HEAD: "model.language_model.embed_tokens.weight"},
    ),
    "t5": (
        "t5",
        False,
        ["shared.weight", "encoder.final.weight", "decoder.final.weight"],
        {
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
        },
    ),
    "nothing to tie": ("llama", True, ["model.norm.weight"], {}),
}


@pytest.mark.parametrize(("model_type", "said", "names", "ties"), CASES.values(), ids=CASES.keys())
def test_find_ties(model_type, said, names, ties):
    config = {"model_type": model_type}
    if said is not None:
        config["tie_word_embeddings"] = said
    assert find_ties(names, config) == ties


def test_nested_config_speaks_where_the_outer_is_silent():
    assert says_tied({"model_type": "x", "text_config": {"tie_word_embeddings": True}})
    assert not says_tied(
        {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    )
    assert says_tied({"model_type": "x", "text_config": {"model_type": "gemma"}})
    assert not says_tied(None)


def folder(tmp_path, tied, names, value=0.0):
    save_file(
        {name: np.full((4, 2), value, np.float32) for name in names},
        tmp_path / "model.safetensors",
    )
    config = {"model_type": "llama", "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return open_source(tmp_path)


def test_tied_tensors_are_listed_once(tmp_path):
    inventory = folder(tmp_path, True, [EMBED, HEAD])
    assert [t.name for t in inventory.tensors] == [EMBED]
    assert inventory.ties == {HEAD: EMBED}
    assert [t.name for t in inventory.duplicates] == [HEAD]
    assert inventory.notes == (
        "stored twice although tied, planned once: lm_head.weight = model.embed_tokens.weight",
    )


def test_equal_values_are_no_tie(tmp_path):
    inventory = folder(tmp_path, False, [EMBED, HEAD])
    assert [t.name for t in inventory.tensors] == [HEAD, EMBED]
    assert inventory.ties == {}
    assert inventory.duplicates == ()


def test_matrices_without_a_config_are_never_tied(tmp_path):
    save_file({EMBED: np.zeros((4, 2), np.float32)}, tmp_path / "x.safetensors")
    assert open_source(tmp_path).ties == {}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {}),
        ("gpt_neox", {"tie_word_embeddings": True}),
        ("opt", {}),
        ("gemma", {}),
        ("mixtral", {"num_local_experts": 2}),
    ],
)
def test_folder_agrees_with_transformers(tmp_path, model_type, options):
    """A saved folder and its bare config have the same names and ties."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    extra = {} if model_type == "gpt2" else {"intermediate_size": 12}
    config = transformers.CONFIG_MAPPING[model_type](**small, **extra, **options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    saved = open_source(tmp_path / "saved")
    bare = open_source(tmp_path / "saved" / "config.json")
    assert bool(saved.ties) == bool(model.all_tied_weights_keys)
    assert bare.ties == saved.ties
    assert {t.name: t.shape for t in bare.tensors} == {t.name: t.shape for t in saved.tensors}
    assert [m.name for m in bare.matrices()] == [m.name for m in saved.matrices()]
    assert saved.duplicates == ()
