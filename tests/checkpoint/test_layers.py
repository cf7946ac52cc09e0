"""Layers by number: those of the model, and those for multi-token prediction, which have none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler import plan
from reallm_compiler.checkpoint import layer_index, open_source
from reallm_compiler.checkpoint.layers import is_prediction, model_layer, prediction_layers
from reallm_compiler.errors import RecipeError

LAYERS = {
    "model.layers.12.mlp.up_proj": 12,
    "transformer.h.3.attn.c_attn": 3,
    "blocks.0.x": 0,
    "encoder.block.7.layer.0.q": 7,
    "bert.encoder.layer.4.output.dense": 4,
    "h.11": 11,
    "model.embed_tokens": None,
    "model.layers2.5.x": None,
    "lm_head": None,
    "mtp.layers.0.mlp.up_proj": None,
    "model.mtp.layers.1.mlp.up_proj": None,
    "model.mtp_layers.0.layers.0.x": None,
    "model.nextn.layers.0.x": None,
    "model.layers.3.mtpish.x": 3,
}


@pytest.mark.parametrize(("name", "layer"), LAYERS.items(), ids=LAYERS.keys())
def test_layer_index(name, layer):
    assert layer_index(name) == layer


def stack(prefix, count, *beside):
    return [f"{prefix}{number}.mlp.up_proj.weight" for number in range(count)] + list(beside)


TEXT = ("model.embed_tokens.weight",)
STACKS = {
    "numbered on": (stack("model.layers.", 5, *TEXT), {"num_hidden_layers": 4}, {4}),
    "three": (stack("model.layers.", 7, *TEXT), {"num_hidden_layers": 4}, {4, 5, 6}),
    "in a text config": (
        stack("model.language_model.layers.", 4, "model.language_model.embed_tokens.weight"),
        {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 9}},
        {3},
    ),
    "as many as stated": (stack("model.layers.", 4, *TEXT), {"num_hidden_layers": 4}, set()),
    "fewer": (stack("model.layers.", 3, *TEXT), {"num_hidden_layers": 4}, set()),
    "a deeper tower": (
        stack("visual.blocks.", 9, "visual.pos_embed.weight"),
        {"num_hidden_layers": 4},
        set(),
    ),
    "an encoder of its own depth": (
        stack("model.encoder.layers.", 6, "model.encoder.embed_tokens.weight"),
        {"num_hidden_layers": 4, "encoder_layers": 6},
        set(),
    ),
    "no count": (stack("model.layers.", 5, *TEXT), {"model_type": "x"}, set()),
    "odd counts": (
        stack("model.layers.", 5, *TEXT),
        {"num_hidden_layers": "4", "n_layer": True, "num_layers": -3, "text_config": [1]},
        set(),
    ),
    "no config": (stack("model.layers.", 5, *TEXT), None, set()),
}


@pytest.mark.parametrize(("names", "config", "extra"), STACKS.values(), ids=STACKS.keys())
def test_prediction_layers(names, config, extra):
    found = prediction_layers(names, config)
    assert {int(prefix.rpartition(".")[2]) for prefix in found} == extra
    for name in names:
        number = layer_index(name)
        assert model_layer(name, found) == (None if number in extra else number)


IN_A_MODEL = {
    "model.layers.61.mlp.up_proj": True,
    "model.language_model.layers.61.enorm": True,
    "layers.61.enorm": True,
    "mtp.fc": True,
    "model.mtp_layers.0.x": True,
    "model.layers.60.x": False,
    "model.layers.6.x": False,
    "visual.blocks.61.x": False,
    "value_head": False,
}


@pytest.mark.parametrize(("name", "found"), IN_A_MODEL.items(), ids=IN_A_MODEL.keys())
def test_is_prediction(name, found):
    assert is_prediction(name, frozenset({"model.layers.61"})) == found


@pytest.fixture
def predicting(tmp_path):
    """Two layers of the model, one numbered on, one under a name of its own."""
    names = [
        *(f"model.layers.{n}.{w}.weight" for n in range(3) for w in ("a_proj", "b_proj")),
        "model.layers.2.shared_head.head.weight",
        "model.layers.2.embed_tokens.weight",
        "mtp.layers.0.a_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]
    save_file({n: np.ones((32, 32), np.float32) for n in names}, tmp_path / "model.safetensors")
    config = {"model_type": "x", "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def bits(folder, **rule):
    document = {
        "reallm": 1,
        "defaults": {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 2}},
        "rules": [{**rule, "set": {"quantizer": {"bits": 8}}}],
    }
    found = {
        m.name: m.plan.quantizer.model_dump()["bits"] for m in plan(document, model=folder).matrices
    }
    return found, {name for name, width in found.items() if width == 8}


def test_recipe_speaks_of_the_models_layers(predicting):
    assert open_source(predicting).layers == 2
    coded, wide = bits(predicting, match="*.a_proj", layers=-1)
    assert wide == {"model.layers.1.a_proj"}
    assert not any("head" in name or "embed" in name for name in coded)
    assert bits(predicting, match="*.a_proj", layers="0..")[1] == {
        "model.layers.0.a_proj",
        "model.layers.1.a_proj",
    }
    assert bits(predicting, match="model.layers.2.*_proj")[1] == {
        "model.layers.2.a_proj",
        "model.layers.2.b_proj",
    }
    assert bits(predicting, match="mtp.*")[1] == {"mtp.layers.0.a_proj"}
    with pytest.raises(RecipeError, match="layers 0 to 1"):
        bits(predicting, match="*.a_proj", layers=2)
