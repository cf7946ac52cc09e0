"""`reallm budget --time`: the documented keys, what was asked for, and what is not known."""

from __future__ import annotations

import pytest

STEP_KEYS = {
    "name",
    "nodes",
    "workers",
    "cpu_hours",
    "hours",
    "gpu_hours",
    "memory_bytes",
    "fits",
    "disk_bytes",
    "network_bytes",
    "dollars",
    "gpu_dollars",
    "unmeasured",
}


def test_json_has_exactly_the_documented_keys(run, tiny_recipe, tiny_llama):
    args = ("budget", tiny_recipe, "--model", tiny_llama, "--time", "--json")
    result = run(*args, "--nodes", 2, "--cores", 3, "--price-cpu", 7)
    assert (result.code, result.err) == (0, "")
    assert set(result.json) == {"steps", "machine", "points"}
    compiled = result.json["steps"][0]
    assert set(compiled) == STEP_KEYS
    assert (compiled["name"], compiled["nodes"], compiled["workers"]) == ("compile", 2, 6)
    assert compiled["dollars"] == pytest.approx(2 * 3 * 7 * compiled["hours"])
    assert compiled["gpu_hours"] is None
    assert {step["nodes"] for step in run(*args).json["steps"]} == {1, 8, 64}


def test_the_table_says_what_was_not_measured(run, tiny_recipe, tiny_llama):
    args = ("budget", tiny_recipe, "--model", tiny_llama, "--time", "--nodes", 1)
    result = run(*args)
    assert result.code == 0
    assert "no GPU was measured" in result.out
    assert "GPU dollars" not in result.out
    assumed = run(*args, "--assume-gpu", 100).out
    assert "an assumption of 100 TFLOPS, not measured" in assumed
    assert "GPU dollars" in assumed
    small = run(*args, "--memory", 0.001).out
    assert "(too much)" in small


def test_an_archive_brings_its_config_and_shapes_have_none(run, archive, tmp_path):
    assert run("budget", archive, "--time", "--json").json["steps"]
    shapes = tmp_path / "shapes.json"
    shapes.write_text('{"shapes": {"layers.0.w.weight": [64, 64]}, "dtype": "bfloat16"}')
    result = run("budget", "nf4", "--model", shapes, "--time")
    assert result.code == 0
    assert "this model has no config" in result.out


@pytest.mark.parametrize("option", [("--nodes", 2), ("--assume-gpu", 100)], ids=lambda one: one[0])
def test_options_of_the_time_alone(run, tiny_recipe, tiny_llama, option):
    result = run("budget", tiny_recipe, "--model", tiny_llama, *option)
    assert result.code == 2
    assert f"`{option[0]}` is about time" in result.err
    assert "--time" in result.err
