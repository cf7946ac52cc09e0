"""Recipes put together from several files, and recipes as plain data."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe import load_recipe
from reallm_compiler.stages import LowRank, MatrixPlan, NoPermutation, VectorQuantizer


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes recipe files, and stands in their folder."""
    monkeypatch.chdir(tmp_path)

    def all_of(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")

    return all_of


def problem_lines(source: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    return str(caught.value).splitlines()


def test_a_shipped_recipe_is_patched(write):
    write(
        own="reallm: 1\nextends: paper-2bit\nseed: 5\nmodel: m\noutput: o.reallm\n"
        "defaults: {quantizer: {bits: 3, dim: 2}, permutation: {kind: none}}\n"
    )
    recipe = load_recipe("own.yaml")
    base = load_recipe("paper-2bit")
    assert (recipe.name, recipe.seed, recipe.model, recipe.output) == ("own", 5, "m", "o.reallm")
    assert recipe.plan.permutation == NoPermutation()
    assert isinstance(recipe.plan.quantizer, VectorQuantizer)
    assert (recipe.plan.quantizer.bits, recipe.plan.quantizer.dim) == (3, 2)
    assert recipe.plan.residual == base.plan.residual
    assert recipe.plan.scales == base.plan.scales


def test_rules_of_the_base_come_first_and_later_values_win(write):
    write(
        base="reallm: 1\nseed: 1\nmodel: a\nrules: [{match: one, keep: source}]\n",
        middle="reallm: 1\nextends: base.yaml\nseed: 2\nrules: [{match: two, keep: source}]\n",
        own="reallm: 1\nextends: middle.yaml\nrules: [{match: three, keep: bf16}]\n",
    )
    recipe = load_recipe(Path("own.yaml"))
    assert [rule.match[0].text for rule in recipe.rules] == ["one", "two", "three"]
    assert [rule.path for rule in recipe.rules] == ["rules[0]"] * 3
    assert (recipe.seed, recipe.model) == (2, "a")
    assert [path.name for path in recipe.files] == ["base.yaml", "middle.yaml", "own.yaml"]


def test_extends_is_relative_to_its_file(write, tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "base.yaml").write_text("reallm: 1\nseed: 3\n")
    (tmp_path / "deep" / "er" / "own.yaml").write_text("reallm: 1\nextends: ../base.yaml\n")
    assert load_recipe("deep/er/own.yaml").seed == 3


def test_a_file_without_a_suffix_can_be_named(write, tmp_path: Path):
    (tmp_path / "plain").write_text("reallm: 1\nseed: 4\n")
    assert load_recipe("plain").seed == 4


def test_circles_and_missing_bases(write):
    write(
        a="reallm: 1\nextends: b.yaml\n",
        b="reallm: 1\nextends: c.yaml\nsed: 1\n",
        c="reallm: 1\nextends: a.yaml\n",
        self="reallm: 1\nextends: self.yaml\n",
        lost="reallm: 1\nextends: nowhere.yaml\ndefaults: {dor: true, scales: {block: 32}}\n",
        near="reallm: 1\nextends: reallm-2bt\n",
        folder="reallm: 1\nextends: .\n",
        zero='reallm: 1\nextends: "a\\0b.yaml"\n',
        long=f"reallm: 1\nextends: {'x' * 300}\n",
        broken="reallm: 1\nextends: bad.yaml\nsed: 1\n",
        bad="reallm: [\n",
        newer="reallm: 1\nextends: future.yaml\n",
        future="reallm: 7\nnew: words\n",
    )
    assert problem_lines("a.yaml") == [
        "b.yaml:3:1: sed: unknown key `sed` (did you mean `seed`?)",
        "c.yaml:2:10: extends: `extends` is circular: a.yaml -> b.yaml -> c.yaml -> a.yaml",
    ]
    assert problem_lines("self.yaml") == [
        "self.yaml:2:10: extends: `extends` is circular: self.yaml -> self.yaml"
    ]
    assert problem_lines("lost.yaml") == [
        "lost.yaml:2:10: extends: there is no recipe file `nowhere.yaml`",
        "lost.yaml:3:12: defaults.dor: unknown key `dor` (did you mean `dora`?)",
    ]
    assert problem_lines("near.yaml") == [
        "near.yaml:2:10: extends: there is no shipped recipe `reallm-2bt`, and no file of that "
        "name (did you mean `reallm-2bit`?)"
    ]
    assert problem_lines("folder.yaml") == [
        "folder.yaml:2:10: extends: there is no recipe file `.`"
    ]
    assert problem_lines("zero.yaml") == [
        "zero.yaml:2:10: extends: this is neither a name nor a path: it contains a zero byte"
    ]
    assert problem_lines("long.yaml")[0].startswith(
        "long.yaml:2:10: extends: there is no shipped recipe"
    )
    assert problem_lines("broken.yaml") == [
        "broken.yaml:3:1: sed: unknown key `sed` (did you mean `seed`?)",
        "bad.yaml:2:1: expected the node content, but found '<stream end>' "
        "(check indentation, quotes and brackets)",
    ]
    assert problem_lines("newer.yaml") == [
        "future.yaml:1:9: reallm: this reallm reads version 1 of the recipe language, not `7` "
        "(install a newer reallm, or rewrite the recipe for version 1)"
    ]


def test_settings_of_tuning_are_merged_field_by_field(write):
    write(
        base="reallm: 1\n"
        "finetune: {window: 512, e2e: {loss: distill, lr: 1, betas: [0.9, 0.99]}}\n",
        own="reallm: 1\nextends: base.yaml\n"
        "finetune: {window: null, block: {lr: 1e-3}, e2e: {lr: 1e-4}, stages: [e2e, block]}\n",
        plain="reallm: 1\nfinetune: {}\n",
    )
    recipe = load_recipe("own.yaml")
    assert recipe.finetune == {
        "stages": ["block", "e2e"],
        "window": None,
        "block": {"lr": 1e-3},
        "e2e": {"loss": "distill", "lr": 1e-4, "betas": [0.9, 0.99]},
    }
    assert recipe.document["finetune"] == recipe.finetune
    assert isinstance(load_recipe("base.yaml").finetune["e2e"]["lr"], float)
    again = load_recipe(recipe.document)
    assert again.document == recipe.document
    assert "finetune" not in load_recipe("plain.yaml").document


def test_a_fault_is_reported_in_the_file_that_made_it(write):
    write(
        base="reallm: 1\ndefaults: {scales: {kind: rms}, quantizer: {kind: uniform, bits: 2}}\n"
        "rules: [{match: a, set: {quantizer: {bits: 99}}}]\n",
        own="reallm: 1\nextends: base.yaml\ndefaults: {scales: {kind: none}}\n",
    )
    assert problem_lines("own.yaml") == [
        "own.yaml:3:11: defaults: `uniform` levels lie on [-1, 1] and need scales: use `absmax`",
        "base.yaml:3:44: rules[0].set.quantizer.bits: `99` is too large: at most 8",
    ]


def test_a_recipe_without_defaults_codes_nothing():
    assert load_recipe({"reallm": 1}).plan == MatrixPlan()


def test_plain_data():
    recipe = load_recipe(
        {
            "reallm": 1,
            "defaults": {"residual": {"kind": "low_rank", "rank": Fraction(1, 32)}},
            "model": {"shapes": {"a": (2, 3)}},
        }
    )
    assert recipe.name == "recipe"
    assert recipe.model == {"shapes": {"a": [2, 3]}}
    (residual,) = recipe.plan.residual
    assert isinstance(residual, LowRank)
    assert residual.rank == Fraction(1, 32)


def test_whole_numbers_of_plain_data_are_integers():
    defaults = {"scales": {"kind": "rms", "per": "block", "block": 64.0}}
    recipe = load_recipe({"reallm": 1.0, "seed": 7.0, "defaults": defaults})
    assert (recipe.seed, recipe.plan.plain()["scales"]["block"]) == (7, 64)


def test_equal_recipes_have_equal_documents(write):
    write(
        one="# a comment\nreallm: 1\nmodel: here\noutput: there\n"
        "defaults: {residual: {kind: low_rank, rank: 1/64}}\n"
        "rules: [{match: a, layers: '0-3, -4..', keep: bf16, optional: false}]\n",
        two="reallm: 1\nseed: 0\n"
        "defaults: {dora: false, residual: {rank: 0.015625, kind: low_rank, fit: svd}}\n"
        "rules: [{keep: bfloat16, match: [a], layers: [0..3, -4..]}]\n",
    )
    one, two = load_recipe("one.yaml"), load_recipe("two.yaml")
    assert one.document == two.document
    assert list(one.document) == ["reallm", "seed", "defaults", "rules"]
    assert one.document["rules"] == [{"match": ["a"], "layers": "0..3,-4..", "keep": "bfloat16"}]


def test_the_document_of_a_base_is_the_whole_recipe(write):
    write(own="reallm: 1\nextends: paper-2bit\nrules: [{match: a, set: {dora: false}}]\n")
    recipe = load_recipe("own.yaml")
    assert "extends" not in recipe.document
    assert recipe.document["defaults"] == load_recipe("paper-2bit").plan.plain()


rules = st.fixed_dictionaries(
    {"match": st.sampled_from(["a", ["a", "*.b"], "re:c.*"])},
    optional={
        "except": st.sampled_from(["b", ["b", "re:d"]]),
        "layers": st.sampled_from([0, "0-3", [1, "-2.."], "..4", "-1"]),
        "optional": st.booleans(),
        "note": st.text(max_size=5),
    },
)
actions = st.sampled_from(
    [
        {"keep": "fp16"},
        {"keep": "source"},
        {"set": {}},
        {"set": {"dora": True, "share": None}},
        {"set": {"residual": {"kind": "low_rank", "rank": "1/8"}}},
        {"set": {"quantizer": {"kind": "vq", "bits": 2.5, "dim": 2}}},
    ]
)
recipes = st.builds(
    lambda seed, drawn: {"reallm": 1, "seed": seed, "rules": [{**r, **a} for r, a in drawn]},
    st.integers(0, 2**63 - 1),
    st.lists(st.tuples(rules, actions), max_size=4),
)


@given(recipes)
def test_a_document_says_the_whole_recipe_again(data):
    recipe = load_recipe(data)
    again = load_recipe(recipe.document)
    assert again.document == recipe.document
    assert (again.plan, again.seed) == (recipe.plan, recipe.seed)
    for one, two in zip(recipe.rules, again.rules, strict=True):
        assert (one.match, one.exceptions, one.layers) == (two.match, two.exceptions, two.layers)
        assert (one.keep, one.optional, one.note) == (two.keep, two.optional, two.note)


def test_a_broken_document_is_refused_by_path():
    document = {**load_recipe("nf4").document, "defaults": {"quantizer": {"kind": "nff"}}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(document, name="archive.reallm")
    assert str(caught.value) == (
        "archive.reallm: defaults.quantizer.kind: there is no kind `nff` here "
        "(did you mean `normal_float`?)"
    )


def test_a_slip_in_the_defaults_is_reported_once(tmp_path):
    path = tmp_path / "slip.yaml"
    path.write_text(
        "reallm: 1\n"
        "extends: paper-2bit\n"
        "defaults:\n"
        "  residul: {kind: none}\n"
        "rules:\n"
        "  - match: a\n"
        "    set: {dora: false}\n"
        "  - match: b\n"
        "    set: {dora: true}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.path for problem in caught.value.problems] == ["defaults.residul"]
