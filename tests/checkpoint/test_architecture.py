"""Config objects of transformers, from contents that need care."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from reallm_compiler.checkpoint.architecture import model_class, transformers_config

transformers = pytest.importorskip("transformers")


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    transformers.Mamba2Config(
        hidden_size=32, num_hidden_layers=1, num_heads=8, head_dim=8
    ).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    config = transformers_config(content, "here")
    assert tuple(config.time_step_limit) == (0.0, math.inf)


@pytest.mark.parametrize("value", ["auto", 7, [], ["x"], True])
def test_a_word_where_a_part_stands(value: object) -> None:
    content = {**transformers.LlamaConfig(hidden_size=32).to_dict(), "text_config": value}
    assert type(transformers_config(content, "here")).__name__ == "LlamaConfig"


def test_a_class_in_other_capitals() -> None:
    content = {**transformers.MptConfig(d_model=32).to_dict(), "architectures": ["MPTForCausalLM"]}
    config = transformers_config(content, "here")
    assert model_class(config, content, "here") is transformers.MptForCausalLM
