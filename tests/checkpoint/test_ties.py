"""Ties: from the config and the names, never from the values."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.checkpoint import open_source, ties
from reallm_compiler.checkpoint.ties import find_ties, says_tied

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
            "lm_head.weight": "shared.weight",
        },
    ),
    "t5 with a head of its own": (
        "t5",
        False,
        ["shared.weight", "encoder.final.weight", "lm_head.weight"],
        {"encoder.embed_tokens.weight": "shared.weight"},
    ),
    "bart untied": (
        "bart",
        False,
        ["model.shared.weight", "model.encoder.embed_tokens.weight", "lm_head.weight"],
        {},
    ),
    "whisper": (
        "whisper",
        None,
        ["model.decoder.embed_tokens.weight"],
        {"proj_out.weight": "model.decoder.embed_tokens.weight"},
    ),
    "masked language model": (
        "roberta",
        None,
        ["roberta.embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.dense.weight"],
        {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
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


PAIR_EMBED = "model.language_model.embed_tokens.weight"
PAIRS = {
    "what text_config says counts for nothing": ("qwen3_vl", None, True, False, False),
    "the outer config counts": ("qwen3_vl", True, False, True, True),
    "either counts": ("llava", None, True, True, True),
    "either counts, one denies: both are kept": ("llava", False, True, True, False),
    "a default of a pair: both are kept": ("mistral3", None, None, True, False),
    "a default of a pair, and the text says so": ("gemma3", None, True, True, True),
    "a type that transformers does not know": ("stranger", None, True, False, False),
}
"""Model type, what the outer config and text_config say; tied, and a stored head is a copy."""


@pytest.mark.parametrize(
    ("model_type", "outer", "inner", "tied", "drop"), PAIRS.values(), ids=PAIRS
)
def test_the_level_that_transformers_reads(model_type, outer, inner, tied, drop):
    text = {} if inner is None else {"tie_word_embeddings": inner}
    config = {"model_type": model_type, "text_config": text}
    if outer is not None:
        config["tie_word_embeddings"] = outer
    expected = {HEAD: PAIR_EMBED}
    assert says_tied(config) == tied
    assert find_ties([PAIR_EMBED], config) == (expected if tied else {})
    assert find_ties([PAIR_EMBED, HEAD], config) == (expected if drop else {})


def test_a_head_inside_is_tied_by_the_config_inside():
    names = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"]
    config = {"model_type": "llama4", "text_config": {"tie_word_embeddings": True}}
    assert find_ties(names, config) == {names[1]: names[0]}
    assert find_ties(names, {"model_type": "llama4", "tie_word_embeddings": True}) == {}


def test_a_class_without_a_head_has_no_tied_head():
    config = {"model_type": "gemma", "architectures": ["GemmaForSequenceClassification"]}
    assert find_ties([EMBED, "score.weight"], config) == {}


def model_types():
    """All types whose ties are in a table, by both levels; of the others every ninth, as it is."""
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    words = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM",
             "SPEECH_SEQ_2_SEQ", "MASKED_LM")  # fmt: skip
    known = {t for word in words for t in getattr(auto, f"MODEL_FOR_{word}_MAPPING_NAMES")}
    listed = {*ties._HEAD_INSIDE, *ties._EITHER, *ties._ALWAYS_TIED}
    without = {"encoder-decoder", "speech-encoder-decoder", "vision-encoder-decoder"}  # no default
    return sorted(listed - without) + sorted(known - listed)[::9]


def test_transformers_reads_the_same():
    transformers = pytest.importorskip("transformers")
    from huggingface_hub.errors import StrictDataclassError

    compared = 0
    for model_type in model_types():
        made = transformers.CONFIG_MAPPING[model_type]
        inside = ties._HEAD_INSIDE.get(model_type, ("text_config", ""))[0]
        levels = (None, True, False) if inside in made.sub_configs else (None,)
        for outer, inner in itertools.product((None, True, False), levels):
            config = {"model_type": model_type}
            if outer is not None:
                config["tie_word_embeddings"] = outer
            if inner is not None:
                config[inside] = {"tie_word_embeddings": inner}
            try:
                built = made.from_dict(copy.deepcopy(config))
            except (TypeError, StrictDataclassError):
                continue  # a type that has no config without a size
            owner = getattr(built, inside) if model_type in ties._HEAD_INSIDE else built
            assert says_tied(config) == bool(getattr(owner, "tie_word_embeddings", False)), config
            compared += 1
    assert compared > 200


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
