"""`eval`, `demo` and `recipes` on tiny things."""

from __future__ import annotations

import json

import pytest

from reallm_cli.commands import demo as demo_module
from reallm_cli.commands.recipes import expected_bits, purpose
from reallm_cli.exit_codes import ExitCode
from reallm_compiler import demo as bundled_module

EVAL_KEYS = {
    "model",
    "text",
    "version",
    "perplexity",
    "tokens",
    "window",
    "windows",
    "bits_per_byte",
    "loss",
    "bytes",
    "dropped_tokens",
    "protocol",
}
REFERENCE_KEYS = {"kl", "top1_agreement", "reference_perplexity"}


def test_eval_json_has_exactly_the_documented_keys(run, archive, text):
    result = run("eval", archive, "--text", text, "--json")
    assert result.code == 0
    assert set(result.json) == EVAL_KEYS
    assert result.json["window"] == 128
    assert result.json["protocol"] == "windows"


def test_eval_with_a_reference_and_documents(run, archive, tiny_llama, text):
    args = ("eval", archive, "--text", text, "--reference", tiny_llama, "--separator", "\\n\\n")
    result = run(*args, "--json")
    assert result.code == 0
    assert set(result.json) == EVAL_KEYS | REFERENCE_KEYS
    assert result.json["protocol"] == "documents"
    shown = run(*args)
    assert shown.code == 0
    assert f"  perplexity      {result.json['perplexity']:.4f}\n" in shown.out
    assert f"{result.json['kl']:.6f} nats per token" in shown.out
    assert "eval: " in shown.err


def test_eval_of_a_model_with_itself_has_no_divergence(run, tiny_llama, text):
    args = ("eval", tiny_llama, "--text", text, "--reference", tiny_llama, "--window", 32)
    result = run(*args, "--json").json
    assert result["kl"] == pytest.approx(0, abs=1e-9)
    assert result["top1_agreement"] == 1
    assert result["perplexity"] == result["reference_perplexity"]


def test_eval_through_a_quantized_cache(run, archive, tiny_llama, text):
    args = ("eval", archive, "--text", text, "--window", 96, "--reference", tiny_llama, "--json")
    plain = run(*args).json
    found = run(*args, "--kv-cache", "kv-3bit", "--kv-step", 12).json
    assert set(found) == set(plain)
    assert 0 < abs(found["perplexity"] / plain["perplexity"] - 1) < 0.1
    wrong = run(*args, "--kv-cache", "kv-5bit")
    assert wrong.code == ExitCode.BAD_RECIPE
    assert "did you mean `kv-" in wrong.err
    none = run(*args, "--kv-cache", "nf4")
    assert (none.code, "says nothing of keys" in none.err) == (ExitCode.BAD_RECIPE, True)
    tasks = run("eval", archive, "--tasks", "a", "--kv-cache", "kv-4bit")
    assert (tasks.code, "`--text`" in tasks.err) == (ExitCode.USAGE, True)


def test_eval_from_the_codes(run, archive, tiny_llama, text):
    dense = run("eval", archive, "--text", text, "--json").json
    packed = run("eval", archive, "--text", text, "--packed", "--json").json
    assert packed.pop("loss") == pytest.approx(dense.pop("loss"), rel=1e-5)
    assert packed["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-4)
    refused = run("eval", tiny_llama, "--text", text, "--packed")
    assert refused.code == ExitCode.BAD_SOURCE
    assert "only archives run packed" in refused.err


def test_eval_tells_what_does_not_fit(run, archive, tiny_llama, text, tmp_path):
    missing = run("eval", archive, "--text", text.with_name("hld.txt"))
    assert (missing.code, missing.out) == (10, "")
    assert missing.err == (
        f"error: there is no such text file\n  at: {text.with_name('hld.txt')}\n\n"
        f"hint: did you mean `{text}`?\n"
    )
    assert run("eval", archive, "--text", text, "--window", 999).code == 10
    assert run("eval", tmp_path / "no-model", "--text", text).code == 4
    assert run("eval", tmp_path / "no.reallm", "--text", text).code == 5
    (tmp_path / "short.txt").write_text("Anna")
    short = run("eval", tiny_llama, "--text", tmp_path / "short.txt")
    assert (short.code, short.out) == (10, "")
    assert "too short" in short.err


@pytest.fixture
def bundled(monkeypatch, tiny_llama, text):
    found = bundled_module.Demo(model=tiny_llama, heldout=text)
    monkeypatch.setattr(bundled_module, "find_demo", lambda: found)


def test_demo_does_the_whole_job(run, bundled, tiny_recipe, tmp_path):
    path = tmp_path / "demo.reallm"
    result = run("demo", "--recipe", tiny_recipe, "-o", path)
    assert result.code == 0
    for part in (
        "stored bytes",
        "planned and stored bytes agree",
        f"intact: {len(run('inspect', path, '--json').out.split('sha256')) - 1} sections",
        "perplexity",
        "original",
        "compressed",
        "prompt\n",
        "original continuation\n",
        "compressed continuation\n",
    ):
        assert part in result.out
    assert f"next: `reallm inspect {path}`" in result.err
    assert run("demo", "--recipe", tiny_recipe, "-o", path).code == 6


def test_demo_measures_the_statistics_that_its_recipe_needs(run, bundled, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo_module, "SAMPLES", 4)
    monkeypatch.setattr(demo_module, "WINDOW", 16)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "reallm: 1\nextends: rtn-4bit\nstatistics: required\n"
        "defaults: {rounding: {kind: feedback}}\n"
    )
    result = run("demo", "--recipe", recipe)
    assert result.code == 0, result.err
    assert "measured on 60 predicted tokens of 4 sequences" in result.out
    assert list(tmp_path.iterdir()) == [recipe]


def test_demo_leaves_nothing_behind(run, bundled, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("demo", "--recipe", tiny_recipe).code == 0
    assert list(tmp_path.iterdir()) == []


def test_demo_without_its_model_says_so(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bundled_module, "_FOLDERS", (tmp_path,))
    result = run("demo")
    assert (result.code, result.out) == (4, "")
    assert "the bundled model is not here" in result.err


def test_demo_prompt_is_the_first_lines_of_the_text():
    line = "one two three four five six seven eight nine ten"
    assert demo_module.demo_prompt("\n".join([line] * 9)) == "\n".join([line] * 3)
    assert demo_module.demo_prompt("short") == "short"


def test_recipes_are_listed_with_their_purpose(run):
    names = {"paper-2bit", "paper-3bit", "reallm-2bit-data-free", "lq-lora", "qlora", "nf4", "nf3"}
    rows = run("recipes", "list", "--json").json
    assert names | {"rtn-4bit", "rtn-2bit"} <= {row["name"] for row in rows}
    shown = run("recipes", "list").out
    for row in rows:
        keys = {"name", "bits", "kl", "measured", "best", "candidates", "statistics", "purpose"}
        keys.add("kv_cache")
        assert set(row) == keys
        assert row["purpose"]
        assert row["candidates"] or row["kv_cache"] or float(row["bits"]) > 1
        assert row["name"] in shown
        assert bool(row["kl"]) == bool(row["measured"])
        line = next(one for one in shown.splitlines() if one.split()[:1] == [row["name"]])
        assert ("***" in line) == (row["measured"] == "docs/methods.md")


def test_recipes_alone_is_the_list_and_the_best_lead(run):
    alone = run("recipes")
    assert alone == run("recipes", "list")
    assert alone.code == 0
    rows = run("recipes", "list", "--json").json
    order = [(row["best"], row["statistics"] == "required") for row in rows]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == 4
    assert rows[0]["name"] == "reallm-2bit"
    titles = (
        "best at their size",
        "best without data",
        "other methods, to compare with",
        "other methods without statistics",
    )
    assert sorted(titles, key=alone.out.index) == list(titles)


def test_a_listed_rate_is_the_planned_one(run, tmp_path):
    shapes = tmp_path / "shapes.json"
    # As many as make what the whole model shares next to nothing: half a megabyte at most.
    names = {f"layers.{layer}.q_proj": [4096, 4096] for layer in range(256)}
    shapes.write_text(json.dumps({"shapes": names}))
    recipe = tmp_path / "recipe.yaml"
    for row in run("recipes", "list", "--json").json:
        if row["candidates"] or row["kv_cache"]:
            continue
        # A list of shapes has no graph that could be prepared, or factors folded into; neither
        # changes a rate.
        folded = row["name"].endswith("-folded")
        defaults = "defaults: {transform: []}" if folded else ""
        recipe.write_text(f"reallm: 1\nextends: {row['name']}\nprepare: []\n{defaults}\n")
        totals = run("budget", recipe, "--model", shapes, "--json").json["totals"]
        assert totals["exact_bits"] == pytest.approx(float(row["bits"]), abs=1e-3), row["name"]


def test_a_shown_recipe_is_the_file(run, tmp_path, tiny_llama):
    shown = run("recipes", "show", "paper-2bit")
    assert shown.code == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(shown.out)
    args = ("--model", tiny_llama, "--json")
    assert run("budget", mine, *args).json == run("budget", "paper-2bit", *args).json
    wrong = run("recipes", "show", "reallm-2bti")
    assert wrong.code == 2
    assert "`reallm-2bit`" in wrong.err


def test_the_schema_is_one(run):
    schema = run("recipes", "schema").json
    assert schema["type"] == "object"
    assert {"reallm", "defaults", "rules", "extends"} <= set(schema["properties"])


def test_head_comments_are_read():
    comment = "Vectors of 4,\none scale. More.\n\nExact bits at 4096 x 4096: 2.003906"
    assert purpose(comment) == "Vectors of 4, one scale"
    assert expected_bits("exact bits 2.003906 at 4096") == "2.003906"
    assert expected_bits("nothing") == ""


def test_eval_wants_a_text_or_tasks(run, archive, text):
    for args in ([], ["--text", text, "--tasks", "apples"]):
        result = run("eval", archive, *args)
        assert result.code == ExitCode.USAGE
        assert "--tasks NAMES" in result.err


def test_random_windows(run, archive, text):
    args = ("eval", archive, "--text", text, "--window", 32, "--random-windows", 5, "--json")
    first, again, other = run(*args), run(*args), run(*args, "--seed", 1)
    assert first.json == again.json
    assert first.json["perplexity"] != other.json["perplexity"]
    assert (first.json["protocol"], first.json["windows"]) == ("random windows", 5)
