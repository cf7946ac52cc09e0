"""The inventory as a whole: speed, order, and the bundled kind of model."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from reallm_compiler.checkpoint import open_source
from reallm_compiler.checkpoint import shards as shards_module
from reallm_compiler.errors import SourceError


def big_checkpoint(folder, layers, shards):
    """Headers of a large sharded model; the data are holes in sparse files."""
    kinds = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_norm"]
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for layer in range(shard, layers, shards):
            for kind in kinds:
                shape = [256] if "norm" in kind else [256, 256]
                size = 2 * 256 ** len(shape)
                tensor = f"model.layers.{layer}.{kind}.weight"
                header[tensor] = {
                    "dtype": "BF16",
                    "shape": shape,
                    "data_offsets": [offset, offset + size],
                }
                weight_map[tensor] = name
                offset += size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def test_a_thousand_matrices_take_one_look_at_each_shard(tmp_path, monkeypatch):
    big_checkpoint(tmp_path, layers=250, shards=7)
    looks = []
    original: Any = vars(shards_module)["read_header"]

    def read_header(path, *rest, **options):
        looks.append(path)
        return original(path, *rest, **options)

    monkeypatch.setattr(shards_module, "read_header", read_header)
    inventory = open_source(tmp_path)
    assert len(looks) == len(set(looks)) == 7
    assert len(inventory.matrices()) == 1000
    assert len(inventory.others()) == 250
    layers = [fact.layer for fact in inventory.matrices()]
    assert layers == sorted(layers)
    assert inventory.layers == 250


def test_tiny_llama(tiny_llama):
    from safetensors import safe_open

    inventory = open_source(tiny_llama)
    assert inventory.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert inventory.notes == ()
    assert {name for name, _ in inventory.files} >= {"config.json", "tokenizer.json"}
    assert len([fact for fact in inventory.matrices() if fact.coded_by_default]) == 14
    assert inventory.layer_of("model.layers.1.mlp.up_proj.weight") == 1
    with safe_open(tiny_llama / "model.safetensors", "pt") as file:
        assert {t.name for t in inventory.tensors} == set(file.keys())
        for spec in inventory.tensors:
            begin, end = spec.byte_range()
            with (tiny_llama / spec.shard).open("rb") as shard:
                shard.seek(begin)
                data = shard.read(end - begin)
            value = file.get_tensor(spec.name)
            assert tuple(value.shape) == spec.shape
            assert bytes(value.untyped_storage())[: len(data)] == data


def test_the_same_inventory_twice(tiny_llama):
    assert open_source(tiny_llama) == open_source(str(tiny_llama))


def test_shapes_as_text():
    (fact,) = open_source(' {"shapes": {"a.weight": [2, 3]}}').matrices()
    assert (fact.name, fact.shape) == ("a", (2, 3))


@pytest.mark.parametrize("text", ['{"shapes": ', "{shapes: {a: [2, 3]}}", "{}"])
def test_text_that_says_no_shapes(text):
    with pytest.raises(SourceError):
        open_source(text)
