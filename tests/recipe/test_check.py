"""What is said about wrong recipes: the full text, one case for each kind of problem."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe import load_recipe
from reallm_compiler.recipe.shipped import list_all
from reallm_compiler.recipe.vocabulary import keys_of, stages
from reallm_compiler.stages import MatrixPlan

SHIPPED = ", ".join(f"`{name}`" for name in list_all())


@pytest.fixture
def problem_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads a recipe's text as `r.yaml` and gives all that is said against it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str) -> str:
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe("r.yaml")
        return str(caught.value)

    return load


def plan(text: str) -> str:
    """A recipe whose defaults are `text`, in line 2 from column 12."""
    return f"reallm: 1\ndefaults: {text}\n"


def rule(text: str) -> str:
    """A recipe with one rule, in line 2 from column 9."""
    return f"reallm: 1\nrules: [{text}]\n"


FILES = {
    "no version": (
        "rules: []",
        "r.yaml:1:1: reallm: `reallm: 1` is missing: it is the version of the recipe language",
    ),
    "newer version": (
        "reallm: 2\nwhatever: 3",
        "r.yaml:1:9: reallm: this reallm reads version 1 of the recipe language, not `2` "
        "(install a newer reallm, or rewrite the recipe for version 1)",
    ),
    "version as text": (
        "reallm: '1'",
        "r.yaml:1:9: reallm: this reallm reads version 1 of the recipe language, "
        "not the text `1` (write `reallm: 1`)",
    ),
    "version as truth": (
        "reallm: true",
        "r.yaml:1:9: reallm: this reallm reads version 1 of the recipe language, not `true` "
        "(write `reallm: 1`)",
    ),
    "no map": (
        "- a\n- b",
        "r.yaml:1:1: a recipe is a map that starts with `reallm: 1`, not a list",
    ),
    "no map but text": (
        "paper-2bit",
        "r.yaml:1:1: a recipe is a map that starts with `reallm: 1`, not `paper-2bit`",
    ),
    "unknown key": (
        "reallm: 1\ndefualts: {}",
        "r.yaml:2:1: defualts: unknown key `defualts` (did you mean `defaults`?)",
    ),
    "unknown key, nothing near": (
        "reallm: 1\nzzz: {}",
        "r.yaml:2:1: zzz: unknown key `zzz` (valid here: `reallm`, `model`, `output`, `seed`, "
        "`extends`, `defaults`, `rules`, `statistics`, `prepare`, `fit`, `allocate`, `kv_cache`, "
        "`finetune`)",
    ),
    "a setting of tuning at the top": (
        "reallm: 1\ne2e: {lr: 1e-3}",
        "r.yaml:2:1: e2e: unknown key `e2e` (it belongs under `finetune`)",
    ),
    "tuning of nothing": (
        "reallm: 1\nfinetune:\n",
        "r.yaml:2:10: finetune: expected a map, got nothing "
        "(remove the key if it should have no value)",
    ),
    "a misspelt setting": (
        "reallm: 1\nfinetune: {e2e: {lrr: 1e-3}}",
        "r.yaml:2:18: finetune.e2e.lrr: unknown key `lrr` (did you mean `lr`?)",
    ),
    "a setting in the wrong group": (
        "reallm: 1\nfinetune: {block: {steps: 2}, lr: 1e-3}",
        "r.yaml:2:20: finetune.block.steps: unknown key `steps` "
        "(it belongs under `finetune.e2e`)\n"
        "r.yaml:2:31: finetune.lr: unknown key `lr` "
        "(it belongs under `finetune.block` or `finetune.e2e`)",
    ),
    "settings out of range": (
        "reallm: 1\nfinetune:\n  stages: [e2e, end]\n  window: 1\n  block: {lr: 2, betas: [0.9]}\n"
        "  e2e: {loss: distil, epochs: many}\n",
        "r.yaml:3:17: finetune.stages[1]: `end` is not one of `block`, `e2e`\n"
        "r.yaml:4:11: finetune.window: `1` is too small: at least 2\n"
        "r.yaml:5:15: finetune.block.lr: `2` is too large: at most 1\n"
        "r.yaml:5:25: finetune.block.betas: the list is too short: it has 1 entries\n"
        "r.yaml:6:15: finetune.e2e.loss: `distil` is not one of `next_token`, `distill` "
        "(did you mean `distill`?)\n"
        "r.yaml:6:31: finetune.e2e.epochs: expected a number, got `many`",
    ),
    "a stage twice": (
        "reallm: 1\nfinetune: {stages: [e2e, e2e]}",
        "r.yaml:2:20: finetune.stages: give `block`, `e2e` or both, each once",
    ),
    "a stage at the top": (
        "reallm: 1\nquantizer: {kind: vq}",
        "r.yaml:2:1: quantizer: unknown key `quantizer` (put it under `defaults`)",
    ),
    "a parameter at the top": (
        "reallm: 1\nrank: 3",
        "r.yaml:2:1: rank: unknown key `rank` (it belongs under `residual` (kind `low_rank`))",
    ),
    "a rule's key at the top": (
        "reallm: 1\nmatch: a",
        "r.yaml:2:1: match: unknown key `match` (it belongs to a rule)",
    ),
    "negative seed": ("reallm: 1\nseed: -1", "r.yaml:2:7: seed: `-1` is too small: at least 0"),
    "true as seed": (
        "reallm: 1\nseed: true",
        "r.yaml:2:7: seed: expected an integer, got `true`",
    ),
    "text as seed": (
        "reallm: 1\nseed: '7'",
        "r.yaml:2:7: seed: expected an integer, got the text `7`",
    ),
    "fraction as seed": (
        "reallm: 1\nseed: 1.5",
        "r.yaml:2:7: seed: expected an integer, got `1.5`",
    ),
    "model as number": (
        "reallm: 1\nmodel: 3",
        "r.yaml:2:8: model: expected text or a map, got `3`",
    ),
    "model with a slip": (
        "reallm: 1\nmodel: {shape: {a: [1, 2]}}",
        "r.yaml:2:9: model.shape: unknown key `shape` (did you mean `shapes`?)",
    ),
    "a shape that is none": (
        "reallm: 1\nmodel: {shapes: {a: [1, x]}}",
        "r.yaml:2:25: model.shapes.a[1]: expected an integer, got `x`",
    ),
    "empty defaults and rules": (
        "reallm: 1\ndefaults:\nrules:\n",
        "r.yaml:2:10: defaults: expected a map, got nothing "
        "(remove the key if it should have no value)\n"
        "r.yaml:3:7: rules: expected a list, got nothing "
        "(remove the key if it should have no value)",
    ),
}
PLANS = {
    "unknown key": (
        "{dor: true}",
        "r.yaml:2:12: defaults.dor: unknown key `dor` (did you mean `dora`?)",
    ),
    "a parameter in the plan": (
        "{rank: 3}",
        "r.yaml:2:12: defaults.rank: unknown key `rank` "
        "(it belongs under `residual` (kind `low_rank`))",
    ),
    "unknown kind": (
        "{quantizer: {kind: vqq, bits: 2, dim: 4}}",
        "r.yaml:2:30: defaults.quantizer.kind: there is no kind `vqq` here (did you mean `vq`?)",
    ),
    "another tool's word": (
        "{quantizer: {kind: nf4}}",
        "r.yaml:2:30: defaults.quantizer.kind: there is no kind `nf4` here "
        "(did you mean `normal_float`?)",
    ),
    "kind that is none": (
        "{scales: {kind: [a]}}",
        "r.yaml:2:27: defaults.scales.kind: expected a kind, got a list "
        "(kinds: `none`, `rms`, `absmax`, `minmax`, `affine`)",
    ),
    "a bare kind": (
        "{residual: none}",
        "r.yaml:2:22: defaults.residual: expected a map, got `none` (write `{kind: none}`)",
    ),
    "an emptied stage": (
        "{residual: null}",
        "r.yaml:2:22: defaults.residual: expected a map, got nothing (write `{kind: none}`)",
    ),
    "parameter without its kind": (
        "{residual: {rank: 3}}",
        "r.yaml:2:22: defaults.residual: `kind` is missing "
        "(with these parameters it can be `low_rank`)",
    ),
    "parameter of another kind": (
        "{scales: {kind: rms}, quantizer: {kind: uniform, bits: 3, dim: 4}}",
        "r.yaml:2:69: defaults.quantizer.dim: `dim` is not a parameter of `uniform` "
        "(it belongs to the kind `vq`, `additive`)",
    ),
    "misspelt parameter": (
        "{residual: {kind: low_rank, rnk: 1/64}}",
        "r.yaml:2:39: defaults.residual.rnk: `rnk` is not a parameter of `low_rank` "
        "(did you mean `rank`?)",
    ),
    "misspelt parameter of another kind": (
        "{scales: {kind: none, blok: 64}}",
        "r.yaml:2:33: defaults.scales.blok: `blok` is not a parameter of `none` "
        "(did you mean `block` of the kind `rms`?)",
    ),
    "missing parameter": (
        "{residual: {kind: low_rank}}",
        "r.yaml:2:22: defaults.residual: `rank` is missing: `low_rank` needs it",
    ),
    "rank 0": (
        "{residual: {kind: low_rank, rank: 0}}",
        "r.yaml:2:45: defaults.residual.rank: the rank must be above 0; "
        "`residual: {kind: none}` stores no factors",
    ),
    "rank above its matrix": (
        "{residual: {kind: low_rank, rank: 3/2}}",
        "r.yaml:2:45: defaults.residual.rank: a fractional rank is a share of min(p, q) "
        "and cannot be above 1",
    ),
    "rank as word": (
        "{residual: {kind: low_rank, rank: big}}",
        "r.yaml:2:45: defaults.residual.rank: expected a number or a fraction such as 1/64, "
        "got `big`",
    ),
    "rank by zero": (
        "{residual: {kind: low_rank, rank: 1/0}}",
        "r.yaml:2:45: defaults.residual.rank: expected a number or a fraction such as 1/64, "
        "got `1/0`",
    ),
    "rank as list": (
        "{residual: {kind: low_rank, rank: [1]}}",
        "r.yaml:2:45: defaults.residual.rank: expected an integer or a fraction such as 1/64, "
        "got a list",
    ),
    "true as rank": (
        "{residual: {kind: low_rank, rank: true}}",
        "r.yaml:2:45: defaults.residual.rank: expected a number, got a boolean",
    ),
    "word of a list": (
        "{residual: {kind: low_rank, rank: 1, fit: svdd}}",
        "r.yaml:2:53: defaults.residual.fit: `svdd` is not one of `svd`, `alternating`, `zero` "
        "(did you mean `svd`?)",
    ),
    "another name of a type": (
        "{residual: {kind: low_rank, rank: 1, dtype: fp16}}",
        "r.yaml:2:55: defaults.residual.dtype: `fp16` is not one of `float32`, `float16`, "
        "`bfloat16`, `int8` (did you mean `float16`?)",
    ),
    "too many bits": (
        "{scales: {kind: rms}, quantizer: {kind: uniform, bits: 9}}",
        "r.yaml:2:66: defaults.quantizer.bits: `9` is too large: at most 8",
    ),
    "bits of a vector": (
        "{quantizer: {kind: vq, bits: 3, dim: 6}}",
        "r.yaml:2:23: defaults.quantizer: bits x dim is 18; it must be an integer from 1 to 16",
    ),
    "rows or a word": (
        "{permutation: {kind: nearest, rows: al}}",
        "r.yaml:2:47: defaults.permutation.rows: expected an integer or `all`, got `al` "
        "(did you mean `all`?)",
    ),
    "rows 0": (
        "{permutation: {kind: nearest, rows: 0}}",
        "r.yaml:2:47: defaults.permutation.rows: rows must be at least 1, or `all`",
    ),
    "yes": (
        "{dora: yes}",
        "r.yaml:2:18: defaults.dora: expected `true` or `false`, got `yes` (did you mean `true`?)",
    ),
    "one as truth": (
        "{dora: 1}",
        "r.yaml:2:18: defaults.dora: expected `true` or `false`, got `1`",
    ),
    "stages that do not fit": (
        "{quantizer: {kind: normal_float, bits: 4}}",
        "r.yaml:2:11: defaults: `normal_float` levels lie on [-1, 1] and need scales: use `absmax`",
    ),
    "nothing to share": (
        "{share: ''}",
        "r.yaml:2:19: defaults.share: this must not be empty",
    ),
}
RULES = {
    "no map": ("q_proj", "r.yaml:2:9: rules[0]: expected a map, got `q_proj`"),
    "unknown role": (
        "{role: heads, keep: source}",
        "r.yaml:2:16: rules[0].role: `heads` is not one of `linear`, `embedding`, `head`, "
        "`router` (did you mean `head`?)",
    ),
    "fraction above one": (
        "{match: a, min_fraction: 5, keep: source}",
        "r.yaml:2:34: rules[0].min_fraction: expected a fraction above 0 and up to 1, "
        "such as 1/100",
    ),
    "no match": (
        "{keep: source}",
        "r.yaml:2:9: rules[0]: `match` is missing: it selects the tensors of the rule",
    ),
    "match of a number": (
        "{match: 3, keep: source}",
        "r.yaml:2:17: rules[0].match: expected a pattern or a list of patterns",
    ),
    "match of nothing": (
        "{match: [], keep: source}",
        "r.yaml:2:17: rules[0].match: this must not be empty",
    ),
    "match of numbers": (
        "{match: [a, 3], keep: source}",
        "r.yaml:2:21: rules[0].match[1]: expected text, got `3`",
    ),
    "empty pattern": (
        "{match: '', keep: source}",
        "r.yaml:2:17: rules[0].match: a pattern must not be empty",
    ),
    "bad regular expression": (
        "{match: [a, 're:(b'], keep: source}",
        "r.yaml:2:21: rules[0].match[1]: not a regular expression: missing ), "
        "unterminated subpattern at position 0",
    ),
    "no action": (
        "{match: a}",
        "r.yaml:2:9: rules[0]: a rule has either `set` or `keep`; this one has neither",
    ),
    "two actions": (
        "{match: a, set: {}, keep: source}",
        "r.yaml:2:9: rules[0]: a rule has either `set` or `keep`; this one has both",
    ),
    "unknown type to keep": (
        "{match: a, keep: fp8}",
        "r.yaml:2:26: rules[0].keep: `fp8` is not one of `source`, `bfloat16`, `float16`, "
        "`float32`",
    ),
    "a stage in the rule": (
        "{match: a, quantizer: {kind: none}, keep: source}",
        "r.yaml:2:20: rules[0].quantizer: unknown key `quantizer` (put it under `set`)",
    ),
    "misspelt key": (
        "{mach: a, keep: source}",
        "r.yaml:2:10: rules[0].mach: unknown key `mach` (did you mean `match`?)",
    ),
    "layers backwards": (
        "{match: a, layers: 5-3, keep: source}",
        "r.yaml:2:28: rules[0].layers: `5-3` ends before it begins",
    ),
    "no layers": (
        "{match: a, layers: first, keep: source}",
        "r.yaml:2:28: rules[0].layers: `first` is not a layer or a range of layers; "
        "write layers as `3`, `0-3`, `2..`, `-4..` or a list of these",
    ),
    "a parameter out of range": (
        "{match: a, set: {residual: {kind: low_rank, rank: 1, iterations: 0}}}",
        "r.yaml:2:74: rules[0].set.residual.iterations: `0` is too small: at least 1",
    ),
    "a plan that does not fit": (
        "{match: a, set: {quantizer: {kind: uniform, bits: 2}}}",
        "r.yaml:2:25: rules[0].set: `uniform` levels lie on [-1, 1] and need scales: use `absmax`",
    ),
    "a kind from no rule": (
        "{match: a, set: {quantizer: {bits: 3}}}",
        "r.yaml:2:38: rules[0].set.quantizer.bits: `bits` is not a parameter of `none` "
        "(it belongs to the kind `uniform`, `normal_float`, `vq`, `e8p`, `trellis`)",
    ),
    "what an earlier rule's kind refuses": (
        "{match: a, set: {quantizer: {kind: vq, bits: 2, dim: 4}}}, "
        "{match: a, set: {quantizer: {dim: 99}}}",
        "r.yaml:2:102: rules[1].set.quantizer.dim: `99` is too large: at most 16",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(problem_text, case):
    text, expected = FILES[case]
    assert problem_text(text) == expected


@pytest.mark.parametrize("case", PLANS)
def test_plans(problem_text, case):
    text, expected = PLANS[case]
    assert problem_text(plan(text)) == expected


@pytest.mark.parametrize("case", RULES)
def test_rules(problem_text, case):
    text, expected = RULES[case]
    assert problem_text(rule(text)) == expected


def test_three_slips_are_reported_together(problem_text):
    text = (
        "reallm: 1\n"
        "defaults:\n"
        "  scales: {kind: absmax, blok: 64}\n"
        "  quantizer: {kind: normal_float, bits: 4}\n"
        "rules:\n"
        '  - match: "*.q_proj"\n'
        "    layer: 0-3\n"
        "    set:\n"
        "      residual: {kind: lowrank, rank: 1/64}\n"
    )
    assert problem_text(text).splitlines() == [
        "r.yaml:3:26: defaults.scales.blok: `blok` is not a parameter of `absmax` "
        "(did you mean `block`?)",
        "r.yaml:7:5: rules[0].layer: unknown key `layer` (did you mean `layers`?)",
        "r.yaml:9:24: rules[0].set.residual.kind: there is no kind `lowrank` here "
        "(did you mean `low_rank`?)",
    ]


def test_wrong_defaults_are_not_repeated_at_each_rule(problem_text):
    text = (
        "reallm: 1\n"
        "defaults: {quantizer: {kind: uniform, bits: 4}}\n"
        "rules: [{match: a, set: {dora: true}}, {match: b, set: {dora: false}}]\n"
    )
    assert problem_text(text) == (
        "r.yaml:2:11: defaults: `uniform` levels lie on [-1, 1] and need scales: use `absmax`"
    )


def test_a_rule_may_build_on_an_earlier_one(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "reallm: 1\n"
        "rules:\n"
        "  - {match: a, set: {scales: {kind: rms}, quantizer: {kind: uniform, bits: 4}}}\n"
        "  - {match: b, set: {quantizer: {kind: vq, bits: 2, dim: 4}}}\n"
        "  - {match: a, set: {quantizer: {bits: 3}}}\n"
        "  - {match: b, set: {quantizer: {dim: 2}}}\n"
    )
    assert len(load_recipe(path).rules) == 4


names = st.sampled_from(
    [
        "reallm",
        "defaults",
        "rules",
        "set",
        "match",
        "kind",
        "residual",
        "transform",
        "autoencoder",
        "quantizer",
        "scales",
        "vq",
        "none",
        "bits",
        "rank",
        "1/64",
        "x",
        "layers",
        "keep",
    ]
)
leaf = names | st.integers(-2, 70) | st.booleans() | st.none() | st.floats(allow_nan=True)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
)
JARGON = re.compile(r"pydantic|Input should|valid (integer|string|dict)|https?:|Error|tuple|_type")


def problems(document) -> list[Problem]:
    """What is wrong with a recipe; also that it is said once, and in plain words."""
    try:
        load_recipe(document)
    except RecipeError as error:
        found = list(error.problems)
    else:
        return []
    text = "\n".join(str(problem) for problem in found)
    assert found
    assert len(set(found)) == len(found)
    assert not JARGON.search(text)
    assert "this value is not valid here" not in text
    return found


@given(anything, anything, st.dictionaries(names, anything, max_size=4))
def test_whatever_is_wrong_is_reported_in_plain_words(defaults, rules, rest):
    problems({**rest, "reallm": 1, "defaults": defaults, "rules": rules})


SETTINGS = [
    (stage, kind, key)
    for stage, kinds in stages().items()
    for kind, model in kinds.items()
    for key in keys_of(model)
]
ODD = [None, True, -1, 0, 1, 10**12, 2.5, "x", "", "3", [], [1], [1, 2, 3, 4], {}, {"kind": "x"}]


@pytest.mark.parametrize(("stage", "kind", "key"), SETTINGS)
def test_every_parameter_complains_in_plain_words(stage, kind, key):
    required = {"rank": 1, "bits": 2, "dim": 2}
    wanted = [
        name for name, info in stages()[stage][kind].model_fields.items() if info.is_required()
    ]
    for value in ODD:
        chosen = {"kind": kind, **{name: required[name] for name in wanted if name in required}}
        chosen[key] = value
        settings = [chosen] if isinstance(MatrixPlan().plain()[stage], list) else chosen
        found = problems({"reallm": 1, "defaults": {stage: settings}})
        assert all(problem.path.startswith("defaults") for problem in found)
        assert len({problem.path for problem in found}) == len(found)


def test_plain_data_that_is_no_recipe():
    cases = [
        (
            {},
            "recipe: reallm: `reallm: 1` is missing: it is the version of the recipe language",
        ),
        ({"reallm": 1, 3: 4}, "recipe: a key must be text, not `3`"),
        ({"reallm": 1, "seed": 2**63}, "recipe: seed: the number is too large"),
    ]
    for document, expected in cases:
        with pytest.raises(RecipeError) as caught:
            load_recipe(document)
        assert str(caught.value) == expected


def test_recipes_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {
        "reallm-2bt": "reallm-2bt: there is no shipped recipe `reallm-2bt`, and no file of that "
        "name (did you mean `reallm-2bit`?)",
        "zzz": "zzz: there is no shipped recipe `zzz`, and no file of that name "
        f"(valid here: {SHIPPED})",
        "mine.yaml": "mine.yaml: there is no such file",
        "a/b": "a/b: there is no such file",
        "": "recipe: no recipe is named",
        "a\0b": "recipe: this is neither a name nor a path: it contains a zero byte",
        "~nobody-at-all/x.yaml": "~nobody-at-all/x.yaml: there is no such file",
        "a"
        * 300: f"{'a' * 300}: there is no shipped recipe `{'a' * 300}`, and no file of that name "
        f"(valid here: {SHIPPED})",
        "reallm: 1\nseed: 3": "recipe: this is text of several lines, not the name or path of a "
        "recipe (save it as a file, or give the recipe as plain data)",
        ".": ".: this is a folder, not a recipe file",
    }
    for source, expected in cases.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(source)
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("base", "patch", "expected"),
    [
        (
            "reallm-3bit-data-free",
            "{quantizer: {bits: 9}}",
            "r.yaml:5:29: rules[0].set.quantizer.bits: bits must lie between 1 and 8",
        ),
        (
            "reallm-3bit-data-free",
            "{quantizer: {state_bits: 3}}",
            "r.yaml:5:22: rules[0].set.quantizer: a state of 3 bits must be longer than a code "
            "of 4 bits",
        ),
        (
            "paper-hnerv",
            "{autoencoder: {latent: [16, 3, 3]}}",
            "r.yaml:5:24: rules[0].set.autoencoder: a patch of 512 x 512 cannot come from a latent "
            "of 3 x 3: rows and columns must grow by the same whole factor above 1",
        ),
    ],
)
def test_a_rule_over_a_shipped_recipe_is_judged_by_its_defaults(
    tmp_path, monkeypatch, base, patch, expected
):
    """The rule for embeddings comes first and has other kinds; it is not what is meant."""
    monkeypatch.chdir(tmp_path)
    text = f"reallm: 1\nextends: {base}\nrules:\n  - match: '*.down_proj'\n    set: {patch}\n"
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert str(caught.value) == expected
