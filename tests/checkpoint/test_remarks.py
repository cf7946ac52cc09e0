"""Remarks: config against tensors, and what is kept although it is large."""

from __future__ import annotations

import pytest

from reallm_compiler.checkpoint.linear import matrices
from reallm_compiler.checkpoint.remarks import remarks
from reallm_compiler.tensors import TensorSpec

EMBED = "model.embed_tokens.weight"


def remarks_of(shapes, config, dtype="bf16"):
    specs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items()]
    return remarks(specs, tuple(matrices(specs, config)), config)


TABLES = {
    "rows": ({EMBED: (40, 8)}, {"vocab_size": 32}, "embed_tokens.weight has 40 rows"),
    "head": ({"lm_head.weight": (40, 8)}, {"vocab_size": 32}, "lm_head.weight has 40 rows"),
    "nested": ({EMBED: (40, 8)}, {"text_config": {"vocab_size": 32}}, "vocab_size 32"),
    "gpt2": ({"transformer.wte.weight": (40, 8)}, {"vocab_size": 32}, "wte.weight has 40"),
    "padding": ({EMBED: (32, 8)}, {"vocab_size": 32, "pad_token_id": 32}, "pad_token_id 32"),
    "padding below": ({EMBED: (32, 8)}, {"vocab_size": 32, "pad_token_id": -40}, "_id -40"),
    "positions": (
        {"transformer.wpe.weight": (16, 8)},
        {"n_positions": 32},
        "wpe.weight has 16 rows, fewer than the 32",
    ),
    "fits": (
        {EMBED: (32, 8), "model.decoder.embed_positions.weight": (18, 8)},
        {"vocab_size": 32, "pad_token_id": 31, "max_position_embeddings": 16},
        None,
    ),
    "padding unset": ({EMBED: (32, 8)}, {"vocab_size": 32, "pad_token_id": None}, None),
    "padding from the end": ({EMBED: (32, 8)}, {"vocab_size": 32, "pad_token_id": -1}, None),
    "two vocabularies": (
        {EMBED: (32, 8), "audio.embed_tokens.weight": (9, 8)},
        {"vocab_size": 32, "audio_config": {"vocab_size": 9}},
        None,
    ),
    "extra rows by design": ({EMBED: (40, 8)}, {"model_type": "mllama", "vocab_size": 32}, None),
    "odd values": (
        {EMBED: (32, 8), "wpe.weight": (4, 8)},
        {"vocab_size": "32", "pad_token_id": [9], "n_positions": True, "text_config": []},
        None,
    ),
    "no config": ({EMBED: (32, 8)}, None, None),
}


@pytest.mark.parametrize(("shapes", "config", "message"), TABLES.values(), ids=TABLES.keys())
def test_tables_and_config(shapes, config, message):
    notes = remarks_of(shapes, config)
    if message is None:
        assert notes == ()
    else:
        assert message in notes[0]
        assert "correct the config" in notes[0]


LINEAR = {f"layers.{i}.up_proj.weight": (8, 8) for i in range(4)}


def test_large_tensors_that_no_rule_knows():
    stacks = {f"layers.{i}.moe.wi": (6, 32, 8) for i in range(4)}
    (note,) = remarks_of({**LINEAR, **stacks}, {"model_type": "x"})
    assert note.startswith("96% of the weights are kept as they are")
    assert "layers.*.moe.wi (4)" in note
    assert "up_proj" not in note
    assert remarks_of({**LINEAR, **stacks}, {"model_type": "x", "num_experts": 6}) == ()


@pytest.mark.parametrize(
    "shapes",
    [
        {EMBED: (99, 99), "lm_head.weight": (99, 99)},
        {"layers.0.conv1d.weight": (99, 1, 4), "layers.0.mlp.gate.weight": (9, 99)},
        {"norm.weight": (9999,)},
        {"layers.0.small": (2, 1, 1)},
    ],
)
def test_what_is_kept_by_a_rule_or_small(shapes):
    assert remarks_of({**LINEAR, **shapes}, {"model_type": "x"}) == ()
