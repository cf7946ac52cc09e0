"""`reallm diff`: archives, recipes and budgets, and the code that says whether they differ."""

from __future__ import annotations

import json
import shutil

import pytest

from reallm_cli.main import main


@pytest.fixture(scope="module")
def other(tiny_llama, tiny_recipe, tmp_path_factory):
    """An archive of the tiny model with 3 bits in place of 2 in the first layer."""
    folder = tmp_path_factory.mktemp("other")
    recipe = folder / "three.yaml"
    rule = '\n  - {match: "*", layers: 0, set: {quantizer: {bits: 3}}}\n'
    recipe.write_text(tiny_recipe.read_text().rstrip() + rule)
    path = folder / "three.reallm"
    args = ["compile", recipe, "--model", tiny_llama, "-o", path, "--workers", "1"]
    assert main(list(map(str, args))) == 0
    return path, recipe


def test_what_is_equal(run, archive, tiny_recipe, tmp_path):
    copy = tmp_path / "copy.reallm"
    shutil.copy(archive, copy)
    for a, b in ((archive, copy), (tiny_recipe, tiny_recipe), ("nf4", "nf4")):
        same = run("diff", a, b)
        assert (same.code, same.out) == (0, "nothing differs\n"), same.err
    assert run("diff", archive, copy, "--json").json["equal"] is True


def test_two_archives(run, archive, other):
    path, _ = other
    shown = run("diff", archive, path)
    assert shown.code == 17
    a, b = (run("inspect", one, "--json").json for one in (archive, path))
    more = b["totals"]["file_bytes"] - a["totals"]["file_bytes"]
    assert more > 0
    assert f"{more:+,}" in shown.out
    found = run("diff", archive, path, "--json").json
    assert set(found) == {"kind", "a", "b", "equal", "settings", "rows"}
    rows = {row["name"]: row for row in found["rows"]["matrices"]}
    assert all(".layers.0." in name for name in rows)
    assert len(rows) == 7
    known = {one["name"]: one for one in b["matrices"]}
    for name, row in rows.items():
        changed = {change["path"]: change["b"] for change in row["changes"]}
        assert changed["plan.quantizer.bits"] == 3
        assert changed["bytes"] == known[name]["bytes"]
        assert changed["relative_error"] == known[name]["relative_error"]
    assert [change["path"] for change in found["settings"]["recipe"]] == ["rules[1]"]


def test_decoded_archives(run, archive, other):
    path, _ = other
    found = run("diff", archive, path, "--json", "--decoded").json
    distances = [row["decoded_error"] for row in found["rows"]["matrices"]]
    assert all(0.05 < distance < 1 for distance in distances)
    assert "distance" in run("diff", archive, path, "--decoded").out
    assert run("diff", "nf3", "nf4", "--decoded").code == 4


def test_two_recipes(run, tiny_recipe, tiny_llama, other):
    _, recipe = other
    alone = run("diff", tiny_recipe, recipe, "--json")
    assert alone.code == 17
    assert [one["path"] for one in alone.json["settings"]["recipe"]] == ["rules[1]"]
    assert alone.json["rows"] == {}
    planned = run("diff", tiny_recipe, recipe, "--model", tiny_llama, "--json").json
    assert len(planned["rows"]["matrices"]) == 7
    assert {change["path"] for change in planned["settings"]["totals"]} > {"exact_bits"}


def test_comments_and_order_are_no_difference(run, tmp_path):
    (tmp_path / "a.yaml").write_text("reallm: 1\nextends: nf4\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("# the same\nseed: 3\nextends: nf4\nreallm: 1\n")
    assert run("diff", tmp_path / "a.yaml", tmp_path / "b.yaml").code == 0


def test_two_budgets(run, tiny_recipe, tiny_llama, other, tmp_path):
    _, recipe = other
    for name, one in (("a", tiny_recipe), ("b", recipe)):
        printed = run("budget", one, "--model", tiny_llama, "--json").out
        (tmp_path / f"{name}.json").write_text(printed)
    found = run("diff", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert found.code == 17
    assert found.json["kind"] == "budget"
    assert len(found.json["rows"]["matrices"]) == 7
    assert run("diff", tmp_path / "a.json", tmp_path / "a.json").code == 0


def test_what_cannot_be_compared(run, archive, tiny_recipe, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps({"totals": {}, "matrices": [1]}))
    for args, code, said in (
        ((archive, tiny_recipe), 4, "the archive of a model and a recipe are not compared"),
        ((archive, tmp_path / "none.reallm"), 5, "there is no such archive"),
        ((tiny_recipe, "nf5"), 3, "nf4"),
        ((tmp_path / "odd.json", tmp_path / "odd.json"), 4, "not as `reallm budget --json`"),
        ((archive, archive, "--model", "x"), 2, "goes with two recipes"),
    ):
        refused = run("diff", *args)
        assert (refused.code, refused.out) == (code, ""), refused.err
        assert said in refused.err
