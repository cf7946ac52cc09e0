"""`reallm budget --context`: keys and values of a context, part by part."""

from __future__ import annotations

import json


def test_the_parts_add_up_and_are_those_of_the_cache(run, tiny_llama):
    import torch

    import reallm_compiler as reallm
    from reallm_compiler.runtime.kv_cache import new_cache
    from reallm_compiler.runtime.kv_settings import kv_settings

    result = run("budget", "kv-3bit", "--model", tiny_llama, "--context", 100, "--json")
    found = result.json["kv_cache"]
    parts = ("coded_bytes", "kept_bytes", "table_bytes")
    assert found["bytes"] == sum(found[part] for part in parts)
    assert found["coded_bytes"] == sum(found["coded"].values())
    model, _ = reallm.load(tiny_llama)
    params = kv_settings("kv-3bit")
    assert params is not None
    cache = new_cache(model, params)
    with torch.no_grad():
        model(torch.zeros(1, 100, dtype=torch.int64), past_key_values=cache, use_cache=True)
    assert cache.nbytes == found["bytes"] < found["plain_bytes"] == 100 * found["plain_token_bytes"]
    shown = run("budget", "kv-3bit", "--model", tiny_llama, "--context", 100).out
    assert "keys and values of 100 tokens in 2 layers" in shown
    assert f"{found['bytes']:,} bytes" in shown


def test_without_a_section_all_is_kept(run, tiny_llama, tmp_path):
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("reallm: 1\n")
    result = run("budget", recipe, "--model", tiny_llama, "--context", 5, "--json")
    found = result.json["kv_cache"]
    assert found["bytes"] == found["plain_bytes"] == 5 * 2 * 2 * 2 * 16 * 2
    assert found["coded"] == {}


def test_what_keeps_no_keys_is_refused(run, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "mamba",
                "architectures": ["MambaForCausalLM"],
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "vocab_size": 32,
                "state_size": 4,
            }
        )
    )
    result = run("budget", "kv-4bit", "--model", config, "--context", 9)
    assert result.code == 4
    assert "MambaForCausalLM" in result.err
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("shapes: {a: [4, 4]}\n")
    result = run("budget", "kv-4bit", "--model", shapes, "--context", 9)
    assert (result.code, "without a config" in result.err) == (4, True)
