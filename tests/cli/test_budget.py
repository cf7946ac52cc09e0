"""`reallm budget`: the numbers add up, and each mistake in a recipe is shown with its place."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import reallm_compiler as reallm


def test_json_is_the_budget(run, tiny_recipe, tiny_llama):
    result = run("budget", tiny_recipe, "--model", tiny_llama, "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document == reallm.plan(tiny_recipe, model=tiny_llama).budget().to_json()
    assert len(document["matrices"]) == 14
    for matrix in document["matrices"]:
        assert sum(matrix["terms"].values()) == matrix["bytes"]
    totals = document["totals"]
    parts = ("coded", "kept", "header", "manifest", "padding", "other")
    assert sum(totals[f"{part}_bytes"] for part in parts) == totals["file_bytes"]
    assert sum(matrix["bytes"] for matrix in document["matrices"]) == totals["coded_bytes"]


def test_the_table_has_a_row_for_each_kind(run, tiny_recipe, tiny_llama):
    result = run("budget", tiny_recipe, "--model", tiny_llama)
    assert (result.code, result.err) == (0, "")
    first = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()}
    assert first["model.layers.*.self_attn.q_proj"][:4] == ["2", "64", "x", "64"]
    assert first["model.layers.*.self_attn.k_proj"][:4] == ["2", "32", "x", "64"]
    # The rule makes two kinds of one name: their layers tell them apart.
    assert "model.layers.*.mlp.down_proj" not in first
    assert first["model.layers.0.mlp.down_proj"][0] == "1"
    assert first["model.layers.1.mlp.down_proj"][0] == "1"
    assert "permutation" in first["matrices"]
    totals = run("budget", tiny_recipe, "--model", tiny_llama, "--json").json["totals"]
    assert first["file"] == [f"{totals['file_bytes']:,}", "100.00", "%"]
    assert f"{totals['numel']:,} coded weights" in result.out


def test_the_printed_bytes_add_up_to_the_file(run, tiny_recipe, tiny_llama):
    out = run("budget", tiny_recipe, "--model", tiny_llama).out
    rows = out.split("part of the file")[1].split("coded weights")[0].splitlines()
    sizes = [int(line.split()[-3].replace(",", "")) for line in rows if line.endswith("%")]
    assert len(sizes) == 7
    assert sum(sizes[:-1]) == sizes[-1]


def test_a_matrix_of_4096_shows_the_papers_bits(run, tmp_path):
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps({"shapes": {"layers.0.q_proj": [4096, 4096]}}))
    out = run("budget", "paper-2bit", "--model", shapes).out
    row = next(line for line in out.splitlines() if line.startswith("layers.*.q_proj")).split()
    terms = ["2", "0.00049", "0.126955", "0.09375", "0.5", "0.003906"]
    assert row[1:] == ["1", "4096", "x", "4096", *terms, "2.500977", "2.725101", "5,714,952"]


def test_a_bare_config_says_that_the_tokenizer_is_unknown(run, tiny_llama, tmp_path):
    config = tmp_path / "config.json"
    config.write_text((tiny_llama / "config.json").read_text())
    result = run("budget", "nf4", "--model", config)
    assert result.code == 0
    assert "note: the tokenizer is unknown" in result.out


def test_explain_names_the_line_of_each_field(run, tiny_recipe, tiny_llama):
    args = ("budget", tiny_recipe, "--model", tiny_llama, "--explain")
    result = run(*args, "model.layers.1.mlp.down_proj")
    assert result.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()}
    assert rows["quantizer.bits"] == ["4", f"{tiny_recipe}:12"]
    assert rows["dora"] == ["true", f"{tiny_recipe}:8"]
    assert rows["rounding.kind"][1] == "default"
    fields = run(*args, "model.layers.1.mlp.down_proj.weight", "--json").json
    assert fields["name"] == "model.layers.1.mlp.down_proj"
    assert all(set(field) == {"path", "value", "location"} for field in fields["fields"])
    assert {"path": "quantizer.bits", "value": 4} in [
        {key: field[key] for key in ("path", "value")} for field in fields["fields"]
    ]


def test_explain_shows_the_group(run, tmp_path, tiny_llama):
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "reallm: 1\nextends: reallm-3bit-data-free\nrules:\n"
        "  - {match: '*.down_proj', layers: '0,-1', set: {quantizer: {state_bits: 9}}}\n"
    )
    args = ("budget", recipe, "--model", tiny_llama, "--explain")
    divided = run(*args, "model.layers.0.mlp.down_proj")
    assert divided.out.splitlines()[-1] == "group `model.2`: shared with 1 other matrix"
    share = next(line for line in divided.out.splitlines() if line.startswith("share"))
    assert share.split()[:2] == ["share", "model.2"]
    rest = run(*args, "model.layers.0.mlp.up_proj")
    assert rest.out.splitlines()[-1].startswith("group `model`: shared with 11 other matrices")


def test_explain_knows_the_nearest_name(run, tiny_recipe, tiny_llama):
    result = run(
        "budget", tiny_recipe, "--model", tiny_llama, "--explain", "model.layers.1.mlp.down_prj"
    )
    assert result.code == 2
    assert "did you mean `model.layers.1.mlp.down_proj`" in result.err


@pytest.fixture
def conv1d(tmp_path):
    """A folder of one layer of GPT-2, whose matrices are stored as [inputs, outputs]."""
    shapes = {
        "wte.weight": (40, 32),
        "h.0.attn.c_attn.weight": (32, 96),
        "h.0.mlp.c_fc.weight": (32, 128),
    }
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


def test_what_is_stored_transposed_is_noted(run, conv1d):
    args = ("budget", "rtn-4bit", "--model", conv1d)
    note = (
        "2 matrices are stored transposed in the checkpoint, as [inputs, outputs] (Conv1D): "
        "the shapes here are [outputs, inputs]"
    )
    assert f"note: {note}" in run(*args).out.splitlines()
    document = run(*args, "--json").json
    assert note in document["notes"]
    rows = {row["name"]: (row["shape"], row["transposed"]) for row in document["matrices"]}
    assert rows == {
        "h.0.attn.c_attn": ([96, 32], True),
        "h.0.mlp.c_fc": ([128, 32], True),
    }
    explain = (*args, "--explain", "h.0.mlp.c_fc")
    line = "stored transposed in the checkpoint: 32 x 128 there, 128 x 32 here"
    assert run(*explain).out.splitlines()[-1] == line
    assert run(*explain, "--json").json["transposed"] is True


def test_what_is_stored_as_it_is_used_is_not_said(run, tiny_recipe, tiny_llama):
    args = ("budget", tiny_recipe, "--model", tiny_llama)
    assert "transposed" not in run(*args).out
    assert not any(row["transposed"] for row in run(*args, "--json").json["matrices"])
    assert "transposed" not in run(*args, "--explain", "model.layers.1.mlp.down_proj").out


def test_stacked_experts_that_are_stored_transposed_are_noted(run, tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: np.zeros((2, 32, 64), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss", "hidden_size": 32}')
    out = run("budget", "rtn-4bit", "--model", tmp_path).out
    assert "note: 2 matrices are stored transposed" in out
    assert "(stacked experts)" in out


def test_three_typos_are_three_answers(run, tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "reallm: 1\n"
        "defaults:\n"
        "  residual:  {kind: lowrank, rank: 1/64}\n"
        "  quantizer: {kind: vq, bits: 2, dims: 4}\n"
        "rules:\n"
        '  - match: "*.k_proj"\n'
        "    sets: {dora: true}\n"
    )
    result = run("budget", "mine.yaml", "--model", tiny_llama)
    assert result.code == 3
    assert result.out == ""
    lines = result.err.splitlines()
    locations = [line for line in lines if line.startswith("  mine.yaml:")]
    assert [location.split(":")[1] for location in locations[:2]] == ["3", "4"]
    assert any(location.split(":")[1] in {"6", "7"} for location in locations[2:])
    for word in ("low_rank", "dim", "set"):
        assert f"    hint: did you mean `{word}`?" in lines


def test_a_wrong_model_path_names_the_nearest(run, tiny_llama):
    result = run("budget", "nf4", "--model", tiny_llama.parent / "tiny-lama")
    assert result.code == 4
    assert "tiny-llama" in result.err


def test_a_wrong_recipe_path_names_the_nearest(run, tiny_recipe, tiny_llama):
    result = run("budget", tiny_recipe.with_suffix(".yml"), "--model", tiny_llama)
    assert result.code == 3
    assert f"did you mean `{tiny_recipe}`?" in result.err


def test_an_archive_shows_planned_beside_stored(run, archive, tiny_llama):
    result = run("budget", archive)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("planned and stored bytes agree\n")
    document = run("budget", archive, "--json").json
    stored = document["stored"]
    parts = {key for key in document["totals"] if key.endswith("_bytes")}
    assert set(stored) == parts - {"source_bytes"}
    assert stored == {key: document["totals"][key] for key in stored}
    assert stored["file_bytes"] == archive.stat().st_size
    again = run("budget", archive, "--model", tiny_llama, "--json").json
    assert again == document


def test_an_archives_recipe_can_be_planned_on_another_model(run, archive, tmp_path):
    shapes = tmp_path / "shapes.json"
    names = {f"model.layers.{layer}.mlp.down_proj": [64, 96] for layer in (0, 1)}
    shapes.write_text(json.dumps({"shapes": names}))
    document = run("budget", archive, "--model", shapes, "--json").json
    assert set(document) == {"matrices", "totals", "notes", "warnings"}
    assert document["totals"]["numel"] == 2 * 64 * 96


def test_explain_of_an_archive_says_what_it_cannot(run, archive):
    result = run("budget", archive, "--explain", "model.layers.0.mlp.up_proj")
    assert result.code == 2
    assert f"`reallm inspect {archive} model.layers.0.mlp.up_proj`" in result.err


@pytest.mark.parametrize("recipe", ["nf4", "paper-3bit"])
def test_budget_and_planner_say_the_same(run, recipe, tiny_llama):
    from reallm_compiler.planning.build import plan

    document = run("budget", recipe, "--model", tiny_llama, "--json").json
    assert document == json.loads(json.dumps(plan(recipe, model=tiny_llama).budget().to_json()))


def test_the_papers_worked_example_term_by_term(run):
    shapes = '{"shapes": {"q_proj": [4096, 4096]}}'
    out = run("budget", "paper-hnerv", "--model", shapes).out
    rows = [line.split() for line in out.splitlines() if line.startswith("q_proj")]
    sizes, paper, costs = rows
    # codes, decoder, scales; paper bits, exact bits: all that is stored, so that scales count.
    assert sizes[5:10] == ["0.25", "2.451859", "0.126959", "2.824921", "2.828818"]
    assert paper[1:] == ["0.25", "2.574921", "2.824921"]
    assert costs[2:] == ["7.47", "TMAC", "92.4", "PFLOP", "92.4", "PFLOP"]
    document = run("budget", "paper-hnerv", "--model", shapes, "--json").json
    assert round(document["matrices"][0]["paper_bits"], 6) == 2.824921
    assert document["totals"]["training_operations"] == 92_358_721_929_216_000


def test_the_original_stands_beside_the_file(run, tiny_llama):
    totals = run("budget", "nf4", "--model", tiny_llama, "--json").json["totals"]
    small = [path for path in tiny_llama.iterdir() if path.suffix == ".json"]
    with safe_open(tiny_llama / "model.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    numbers = sum(math.prod(shape) for shape in shapes)
    assert totals["parameters"] == numbers
    assert totals["source_bytes"] - 2 * numbers <= sum(path.stat().st_size for path in small)
    assert totals["ratio"] == totals["source_bytes"] / totals["file_bytes"]
    stored = totals["coded_bytes"] + totals["kept_bytes"]
    assert totals["model_bits"] == pytest.approx(8 * stored / numbers)
    text = run("budget", "nf4", "--model", tiny_llama).out
    assert f"the original has {totals['source_bytes']:,} bytes" in text
    assert f"{numbers:,} numbers of {totals['model_bits']:.4f} bits" in text


def test_an_archive_knows_its_original(run, archive, tiny_recipe, tiny_llama):
    of_archive = run("budget", archive, "--json").json["totals"]
    of_recipe = run("budget", tiny_recipe, "--model", tiny_llama, "--json").json["totals"]
    assert of_archive == of_recipe


def test_a_file_that_grows_is_warned_of(run, tmp_path, tiny_llama):
    recipe = tmp_path / "large.yaml"
    recipe.write_text("reallm: 1\ndefaults: {quantizer: {kind: none, dtype: float32}}\n")
    result = run("budget", recipe, "--model", tiny_llama)
    assert "warning: the file is larger than the original: " in result.out
    (warning,) = run("budget", recipe, "--model", tiny_llama, "--json").json["warnings"]
    assert warning in result.out
    assert run("budget", "nf4", "--model", tiny_llama, "--json").json["warnings"] == []


def test_kept_embeddings_that_weigh_are_noted(run, tmp_path, tiny_llama):
    recipe = tmp_path / "kept.yaml"
    recipe.write_text("reallm: 1\nextends: nf4\nrules: [{role: [embedding, head], keep: source}]\n")
    coded = tmp_path / "coded.yaml"
    coded.write_text(
        "reallm: 1\nextends: nf4\n"
        "rules: [{role: embedding, set: {quantizer: {kind: uniform, bits: 8}}}]\n"
    )
    message = " % of the file, `model.embed_tokens` the largest: a rule can code them"
    assert message in run("budget", recipe, "--model", tiny_llama).out
    assert message not in run("budget", coded, "--model", tiny_llama).out
