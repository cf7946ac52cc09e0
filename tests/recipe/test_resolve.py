"""Recipes meet a model: who is coded, who is kept, who set what, and what is wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe import Candidate, load_recipe, resolve
from reallm_compiler.recipe import resolve as resolve_function
from reallm_compiler.stages import MatrixPlan

RESOLVE = resolve_function.__module__
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")


def model(layers: int = 4) -> list[Candidate]:
    """A small Llama: matrices and a norm in each layer, embeddings, head, final norm."""
    found = [
        Candidate(name="model.embed_tokens", layer=None, is_matrix=True, coded_by_default=False)
    ]
    for layer in range(layers):
        base = f"model.layers.{layer}."
        found += [
            Candidate(name=base + part, layer=layer, is_matrix=True, coded_by_default=True)
            for part in PARTS
        ]
        found.append(
            Candidate(name=base + "norm", layer=layer, is_matrix=False, coded_by_default=False)
        )
    found.append(Candidate(name="model.norm", layer=None, is_matrix=False, coded_by_default=False))
    found.append(Candidate(name="lm_head", layer=None, is_matrix=True, coded_by_default=False))
    return found


def resolved(*rules, layers=4, defaults=None):
    recipe = load_recipe(
        {"reallm": 1, "extends": "paper-2bit", "defaults": defaults or {}, "rules": list(rules)}
    )
    return resolve(recipe, model(layers))


def problem_lines(*rules, **options) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolved(*rules, **options)
    return str(caught.value).splitlines()


def test_without_rules_linear_layers_are_coded_and_all_else_is_kept():
    decisions = resolved()
    plan = load_recipe("paper-2bit").plan
    assert set(decisions) == {candidate.name for candidate in model()}
    for candidate in model():
        decision = decisions[candidate.name]
        assert decision.plan == (plan if candidate.coded_by_default else None)
        assert decision.keep == (None if candidate.coded_by_default else "source")


def test_later_rules_win_field_by_field():
    decisions = resolved(
        {"match": "*.q_proj", "set": {"quantizer": {"bits": 3, "dim": 2}}},
        {"match": "*.layers.1.*", "set": {"quantizer": {"bits": 1}, "dora": False}},
    )
    both = decisions["model.layers.1.self_attn.q_proj"].plan
    assert both is not None
    assert (both.quantizer.bits, both.quantizer.dim, both.dora) == (1, 2, False)
    second = decisions["model.layers.1.mlp.up_proj"].plan
    assert second is not None
    assert (second.quantizer.bits, second.quantizer.dim) == (1, 4)


def test_layers_and_exceptions():
    decisions = resolved(
        {"match": "*_proj", "except": "*.q_proj", "layers": "0,-1", "keep": "bf16"},
    )
    kept = {name for name, decision in decisions.items() if decision.keep == "bfloat16"}
    assert kept == {f"model.layers.{n}.{part}" for n in (0, 3) for part in PARTS[1:]}


def test_set_codes_an_embedding_or_head_and_keep_keeps_a_matrix():
    decisions = resolved(
        {"match": ["lm_head", "*.embed_tokens"], "set": {}},
        {"match": "*.down_proj", "keep": "float32"},
    )
    plan = load_recipe("paper-2bit").plan
    assert decisions["lm_head"].plan == decisions["model.embed_tokens"].plan == plan
    assert decisions["model.layers.0.mlp.down_proj"].keep == "float32"
    assert decisions["model.layers.0.mlp.down_proj"].plan is None


def test_the_last_rule_decides_and_earlier_sets_still_count():
    name = "model.layers.0.mlp.up_proj"
    change = {"match": name, "set": {"dora": False}}
    keep = {"match": name, "keep": "source"}
    again = {"match": name, "set": {"permutation": {"kind": "none"}}}
    assert resolved(change, keep)[name].keep == "source"
    plan = resolved(change, keep, again)[name].plan
    assert plan is not None
    assert (plan.dora, plan.permutation.kind) == (False, "none")


def test_set_is_nothing_to_tensors_that_are_no_matrices():
    decisions = resolved({"match": "model.*", "set": {"dora": False}})
    assert decisions["model.norm"].keep == "source"
    assert decisions["model.layers.0.norm"].keep == "source"
    assert decisions["model.embed_tokens"].plan is not None


def test_keep_with_a_type_works_on_any_tensor():
    assert resolved({"match": "*norm", "keep": "fp32"})["model.norm"].keep == "float32"


WRONG: dict[str, tuple[Any, str]] = {
    "misspelt name": (
        [{"match": "*.q_porj", "keep": "source"}],
        "recipe: rules[0].match: no tensor of this model matches `*.q_porj` "
        "(did you mean `*.q_proj`? `optional: true` allows it to match nothing)",
    ),
    "misspelt whole name": (
        [{"match": "lm_haed", "keep": "source"}],
        "recipe: rules[0].match: no tensor of this model matches `lm_haed` "
        "(did you mean `lm_head`? `optional: true` allows it to match nothing)",
    ),
    "no star": (
        [{"match": "q_proj", "keep": "source"}],
        "recipe: rules[0].match: no tensor of this model matches `q_proj` "
        "(did you mean `*.q_proj`? `optional: true` allows it to match nothing)",
    ),
    "weight": (
        [{"match": "lm_head.weight", "keep": "source"}],
        "recipe: rules[0].match: no tensor of this model matches `lm_head.weight` "
        "(names are written without `.weight`; `optional: true` allows it to match nothing)",
    ),
    "nothing near": (
        [{"match": ["zzz", "re:yyy"], "keep": "source"}],
        "recipe: rules[0].match: no tensor of this model matches `zzz`, `re:yyy` "
        "(names here: `model.embed_tokens`, `model.layers.*.self_attn.q_proj`, "
        "`model.layers.*.self_attn.k_proj`, `model.layers.*.mlp.up_proj`, "
        "`model.layers.*.mlp.down_proj`, `model.layers.*.norm`, `model.norm`, `lm_head`; "
        "`optional: true` allows it to match nothing)",
    ),
    "exception that takes nothing out": (
        [{"match": "*.q_proj", "except": ["*.layers.0.*", "*.k_proj"], "keep": "source"}],
        "recipe: rules[0].except: the exception `*.k_proj` excludes nothing of what `match` "
        "matches (did you mean `*.q_proj`? `optional: true` allows it to match nothing)",
    ),
    "exception that takes all": (
        [{"match": "*.q_proj", "except": "*proj", "keep": "source"}],
        "recipe: rules[0].match: after `layers` and `except` nothing is left of what `match` "
        "matches (`optional: true` allows it to match nothing)",
    ),
    "layer that is not there": (
        [{"match": "*.q_proj", "layers": "0,7..9", "keep": "source"}],
        "recipe: rules[0].layers: `7..9` is not a layer of this model, which has layers 0 to 3",
    ),
    "layers of what is in none": (
        [{"match": "lm_head", "layers": 3, "keep": "source"}],
        "recipe: rules[0].layers: `lm_head` is in no layer; remove `layers`",
    ),
    "set meets no matrix": (
        [{"match": "*norm", "set": {"dora": False}}],
        "recipe: rules[0].set: `set` applies to no matrix: `model.layers.0.norm` cannot be coded "
        "(use `keep`, or match matrices)",
    ),
    "rules that do not fit together": (
        [
            {"match": "*.q_proj", "set": {"scales": {"kind": "none"}}},
            {"match": "*.layers.2.*", "set": {"quantizer": {"kind": "uniform", "bits": 2}}},
        ],
        "recipe: rules[1].set: `uniform` levels lie on [-1, 1] and need scales: use `absmax`; "
        "the rules together say so for `model.layers.2.self_attn.q_proj`",
    ),
    "rules that do not fit together, and one that is not to blame": (
        [
            {"match": "*.q_proj", "set": {"scales": {"kind": "none"}}},
            {"match": "*.layers.2.*", "set": {"quantizer": {"kind": "uniform", "bits": 2}}},
            {"match": "*.layers.3.*", "set": {"quantizer": {"kind": "uniform", "bits": 3}}},
            {"match": "*_proj", "layers": 2, "set": {"dora": False}},
        ],
        "recipe: rules[1].set: `uniform` levels lie on [-1, 1] and need scales: use `absmax`; "
        "the rules together say so for `model.layers.2.self_attn.q_proj`\n"
        "recipe: rules[2].set: `uniform` levels lie on [-1, 1] and need scales: use `absmax`; "
        "the rules together say so for `model.layers.3.self_attn.q_proj`",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_model(case):
    rules, expected = WRONG[case]
    assert problem_lines(*rules) == expected.splitlines()


def test_more_names_than_a_hint_holds_are_counted():
    names = [f"part_{chr(97 + n)}.x" for n in range(26)]
    candidates = [sized(name, "linear", 9) for name in names]
    recipe = load_recipe({"reallm": 1, "rules": [{"match": "zzzzzz", "keep": "source"}]})
    with pytest.raises(RecipeError, match=r"`part_x\.x` and 2 more; `optional: true`"):
        resolve(recipe, candidates)


def test_all_of_it_is_reported_together():
    rules = [
        rule
        for case in ("misspelt name", "weight", "set meets no matrix")
        for rule in WRONG[case][0]
    ]
    assert [line.split(": ")[1] for line in problem_lines(*rules)] == [
        "rules[0].match",
        "rules[1].match",
        "rules[2].set",
    ]


@pytest.mark.parametrize(
    "case",
    [case for case in WRONG if not case.startswith("rules that do not fit")],
)
def test_optional_rules_may_miss(case):
    rules, _ = WRONG[case]
    assert resolved(*({**rule, "optional": True} for rule in rules))


def test_who_set_each_field(tmp_path):
    path = tmp_path / "r.yaml"
    (tmp_path / "base.yaml").write_text(
        "reallm: 1\n"
        "defaults:\n"
        "  scales: {kind: absmax, block: 64}\n"
        "  quantizer: {kind: normal_float, bits: 4}\n"
    )
    path.write_text(
        "reallm: 1\n"
        "extends: base.yaml\n"
        "defaults:\n"
        "  dora: true\n"
        "rules:\n"
        '  - match: "*.q_proj"\n'
        "    set:\n"
        "      quantizer: {bits: 3}\n"
        '  - match: "*.layers.0.*"\n'
        "    layers: 0\n"
        "    set: {quantizer: {kind: normal_float, bits: 2}}\n"
        "  - {match: lm_head, keep: bf16}\n"
    )
    decisions = resolve(load_recipe(path), model())
    own, base = path, tmp_path / "base.yaml"
    trace = {s.path: s for s in decisions["model.layers.0.self_attn.q_proj"].trace}
    bits = trace["quantizer.bits"]
    assert (bits.value, bits.location, bits.origin) == (
        2,
        f"{own}:11",
        "rules[1].set.quantizer.bits",
    )
    assert bits.overridden == (f"{base}:4", f"{own}:8")
    assert (trace["dora"].location, trace["dora"].origin) == (f"{own}:4", "defaults.dora")
    assert trace["scales.block"].location == f"{base}:3"
    assert trace["permutation.kind"].location == "default"
    assert (trace["share"].value, trace["share"].origin) == (None, "")
    head = decisions["lm_head"].trace
    assert [(s.path, s.value, s.location) for s in head] == [("keep", "bfloat16", f"{own}:12")]
    norm = decisions["model.norm"].trace
    assert [(s.path, s.value, s.location) for s in norm] == [("keep", "source", "default")]


def test_the_trace_covers_every_field_of_the_plan():
    def fields(value, path=""):
        if isinstance(value, dict):
            return [f for k, v in value.items() for f in fields(v, f"{path}.{k}".lstrip("."))]
        return [(path, value)]

    decision = resolved()["model.layers.0.mlp.up_proj"]
    assert decision.plan is not None
    plain = decision.plan.plain()
    (plain["residual"],) = plain["residual"]  # the recipe writes the map of the one kind
    assert [(s.path, s.value) for s in decision.trace] == fields(plain)


def test_a_recipe_without_lines_is_traced_by_path():
    decision = resolved({"match": "*.up_proj", "set": {"dora": False}})[
        "model.layers.0.mlp.up_proj"
    ]
    dora = next(source for source in decision.trace if source.path == "dora")
    assert dora.location == "recipe: rules[0].set.dora"


def test_plans_are_made_once_for_each_set_of_rules(monkeypatch):
    """Twenty thousand matrices and a few rules: some validations, not twenty thousand."""
    recipe = load_recipe(
        {
            "reallm": 1,
            "extends": "paper-2bit",
            "rules": [
                {"match": "*.q_proj", "set": {"dora": False}},
                {"match": "*", "layers": "0-9", "set": {"quantizer": {"bits": 3, "dim": 2}}},
                {"match": "re:.*mlp.*", "keep": "source"},
            ],
        }
    )
    calls = []
    module = __import__(RESOLVE, fromlist=["check_plan"])
    real = module.check_plan
    monkeypatch.setattr(module, "check_plan", lambda tree: calls.append(tree) or real(tree))
    decisions = resolve(recipe, model(layers=4000))
    assert len(decisions) == 4000 * 5 + 3
    assert len(calls) == 4
    assert len({id(decision) for decision in decisions.values()}) <= 8


def test_many_rules_for_single_matrices_are_looked_up_by_name(monkeypatch):
    candidates = model(layers=50)
    names = [candidate.name for candidate in candidates if candidate.coded_by_default]
    rules = [{"match": name, "set": {"quantizer": {"bits": 1}}} for name in names]
    recipe = load_recipe({"reallm": 1, "extends": "paper-2bit", "rules": rules})
    patterns = __import__("reallm_compiler.recipe.match", fromlist=["Pattern"])
    monkeypatch.setattr(patterns.Pattern, "matches", lambda *_: pytest.fail("searched"))
    decisions = resolve(recipe, candidates)
    assert all(decisions[name].plan.quantizer.model_dump()["bits"] == 1 for name in names)


def test_the_order_of_the_tensors_does_not_matter():
    recipe = load_recipe(
        {"reallm": 1, "extends": "nf4", "rules": [{"match": "*q*", "set": {"dora": True}}]}
    )
    shuffled = model()
    random.Random(0).shuffle(shuffled)
    one, two = resolve(recipe, model()), resolve(recipe, shuffled)
    assert {n: (d.plan, d.keep) for n, d in one.items()} == {
        n: (d.plan, d.keep) for n, d in two.items()
    }


def sized(name, role, weights, layer=None):
    coded = role == "linear"
    return Candidate(
        name=name, layer=layer, is_matrix=True, coded_by_default=coded, role=role, numel=weights
    )


MIXED = [
    sized("model.embed_tokens", "embedding", 200),
    sized("model.positions", "embedding", 4),
    Candidate(name="model.norm", layer=None, is_matrix=False, coded_by_default=False),
    sized("model.layers.0.q_proj", "linear", 300, 0),
    sized("model.layers.1.q_proj", "linear", 300, 1),
    sized("model.layers.1.router", "router", 6, 1),
    sized("lm_head", "head", 190),
]


def kept_as_float32(**rule) -> set[str]:
    recipe = load_recipe({"reallm": 1, "rules": [{"keep": "float32", **rule}]})
    decisions = resolve(recipe, MIXED)
    return {name for name, decision in decisions.items() if decision.keep == "float32"}


def test_a_rule_can_ask_what_a_matrix_is_for_and_how_large_it_is():
    both = {"model.embed_tokens", "lm_head"}
    assert kept_as_float32(role="head") == {"lm_head"}
    assert kept_as_float32(role=["embedding", "head"]) == {*both, "model.positions"}
    assert kept_as_float32(role=["embedding", "head"], min_fraction="19/100") == both
    assert kept_as_float32(match="*", min_fraction=0.2) == {
        "model.embed_tokens",
        "model.layers.0.q_proj",
        "model.layers.1.q_proj",
    }
    assert kept_as_float32(role="linear", layers=-1) == {"model.layers.1.q_proj"}
    assert kept_as_float32(role="embedding", **{"except": "*.positions"}) == {"model.embed_tokens"}
    assert kept_as_float32(role="embedding", min_fraction=1, optional=True) == set()
    assert kept_as_float32(match="*", min_numel=250) == {
        "model.layers.0.q_proj",
        "model.layers.1.q_proj",
    }
    assert kept_as_float32(match="*", min_numel=10**12, optional=True) == set()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            {"role": "head", "match": "model.*"},
            "recipe: rules[0].role: no tensor that the rule matches has the role `head` (roles "
            "here: `embedding`, `linear`, `router`; `optional: true` allows it to match nothing)",
        ),
        (
            {"role": "head", "min_fraction": "1/2"},
            "recipe: rules[0].min_fraction: no tensor that the rule matches is that large a part "
            "of the model's weights (the largest is `lm_head` with 19 %, 190 weights; `optional: "
            "true` allows it to match nothing)",
        ),
    ],
)
def test_a_role_or_size_that_nothing_has(rule, expected):
    recipe = load_recipe({"reallm": 1, "rules": [{"keep": "source", **rule}]})
    with pytest.raises(RecipeError) as caught:
        resolve(recipe, MIXED)
    assert str(caught.value) == expected
    optional = load_recipe({"reallm": 1, "rules": [{"keep": "source", "optional": True, **rule}]})
    assert resolve(optional, MIXED)


def shares(decisions) -> dict[str, str | None]:
    return {name: one.plan.share for name, one in decisions.items() if one.plan is not None}


def test_a_group_divides_by_plan_and_its_first_part_keeps_the_name():
    rules = [
        {"match": "*_proj", "set": {"share": "all"}},
        {"match": "*.k_proj", "layers": 1, "set": {"quantizer": {"bits": 1}}},
        {"match": "*.up_proj", "set": {"scales": {"kind": "rms"}}},
        {"match": "*.q_proj", "set": {"dora": False}},  # put on after what is shared
        {"match": "*.down_proj", "layers": 0, "set": {"share": "all.2"}},
    ]
    found = shares(resolved(*rules))
    assert found["model.layers.1.self_attn.k_proj"] == "all.3"  # `all.2` is taken
    assert found["model.layers.2.mlp.up_proj"] == "all.4"
    assert found["model.layers.0.mlp.down_proj"] == "all.2"
    assert found["model.layers.0.self_attn.q_proj"] == found["model.layers.1.mlp.down_proj"]
    assert found["model.layers.0.self_attn.q_proj"] == "all"
    candidates = model()
    candidates.reverse()  # the names do not hang on the order of the tensors
    recipe = load_recipe({"reallm": 1, "extends": "paper-2bit", "rules": rules})
    assert shares(resolve(recipe, candidates)) == found


def test_a_table_of_a_trellis_serves_every_rate():
    rules = [
        {"match": "*.k_proj", "set": {"quantizer": {"bits": "9/4"}}},
        {"match": "*.q_proj", "set": {"quantizer": {"state_bits": 8}}},
    ]
    recipe = load_recipe({"reallm": 1, "extends": "reallm-3bit-data-free", "rules": rules})
    found = shares(resolve(recipe, model()))
    assert found["model.layers.1.self_attn.k_proj"] == "model"
    assert found["model.layers.1.self_attn.q_proj"] == "model.2"


@pytest.mark.parametrize("kind", ["uniform", "normal_float", "none"])
def test_what_shares_nothing_leaves_its_group(kind):
    quantizer = {"kind": kind} if kind == "none" else {"kind": kind, "bits": 8}
    recipe = load_recipe(
        {
            "reallm": 1,
            "extends": "reallm-3bit-data-free",
            "rules": [{"match": "*.down_proj", "set": {"quantizer": quantizer}}],
        }
    )
    decisions = resolve(recipe, model())
    found = shares(decisions)
    assert found["model.layers.0.mlp.down_proj"] is None
    assert found["model.layers.0.mlp.up_proj"] == "model"
    trace = {one.path: one for one in decisions["model.layers.0.mlp.down_proj"].trace}
    assert (trace["share"].value, trace["share"].origin) == (None, "rules[0].set.quantizer")


def test_share_beside_what_shares_nothing_is_a_mistake():
    rule = {
        "match": "*.q_proj",
        "set": {"quantizer": {"kind": "uniform", "bits": 4}, "share": "q"},
    }
    with pytest.raises(RecipeError, match=r"rules\[0\].set: `share` needs something to share"):
        load_recipe({"reallm": 1, "extends": "paper-2bit", "rules": [rule]})


def test_no_plan_is_no_coding():
    recipe = load_recipe({"reallm": 1})
    assert resolve(recipe, model())["model.layers.0.mlp.up_proj"].plan == MatrixPlan()
