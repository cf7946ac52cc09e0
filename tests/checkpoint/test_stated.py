"""Every word and number of a config is a claim: it is used, ignored or refused by its place."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import SourceError


@pytest.fixture
def model(tmp_path):
    """A folder of one matrix and a table."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (4, 6), "model.embed_tokens.weight": (5, 6)}
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


ODD_WORDS = {
    "a list": ({"model_type": ["llama"]}, "model_type is ['llama'], not a string", "model_type"),
    "a mapping": ({"model_type": {}}, "model_type is {}, not a string", "model_type"),
    "inside": (
        {"model_type": "llava", "text_config": {"model_type": ["llama"]}},
        "model_type is ['llama'], not a string",
        "text_config.model_type",
    ),
}


@pytest.mark.parametrize(("config", "message", "key"), ODD_WORDS.values(), ids=ODD_WORDS.keys())
def test_a_model_type_is_a_word(model, config, message, key):
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError) as caught:
        open_source(model)
    error = caught.value
    assert (error.message, error.location) == (message, f"config.json: {key}")


VALUES = (None, True, -1, 10**30, 0.5, "", "x", [], [1], ["llama"], {}, {"a": 1})
KEYS = (
    "architectures",
    "auto_map",
    "compression_config",
    "decoder",
    "dtype",
    "hidden_size",
    "model_type",
    "quant_method",
    "config_groups",
    "quantization_config",
    "text_config",
    "tie_word_embeddings",
    "torch_dtype",
    "weight_block_size",
)


@pytest.mark.parametrize("inside", [None, "text_config", "quantization_config"])
@pytest.mark.parametrize("key", KEYS)
def test_any_value_of_any_key_is_read_or_refused(model, key, inside):
    for value in VALUES:
        config = {"model_type": "llama"}
        (config.setdefault(inside, {}) if inside else config)[key] = value
        (model / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(SourceError):
            assert open_source(model).tensors
