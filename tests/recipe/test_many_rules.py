"""Many rules on many names: an expression is compiled once, a name is tried only if it can fit."""

from __future__ import annotations

import re
import sys

import pytest

from reallm_compiler.recipe import Candidate, load_recipe, match, resolve
from reallm_compiler.recipe.match import Pattern
from reallm_compiler.recipe.selection import select

resolve_module = sys.modules["reallm_compiler.recipe.resolve"]
selection_module = sys.modules["reallm_compiler.recipe.selection"]

NAMES = [
    *(
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj"
        for layer in range(12)
        for expert in range(6)
        for kind in ("gate", "up", "down")
    ),
    "model.embed_tokens",
    "lm_head",
    "layers.1",
    "a[b.c",
    "x]y.z",
]
PATTERNS = [
    "*",
    "lm_head",
    "*.down_proj",
    "*layers.1.*",
    "*layers.1?.mlp*",
    "model.layers.[13].mlp.experts.*",
    "model.layers.[!1].mlp.experts.[0-2].up_proj",
    "*.experts.[.]*",
    "x[.\\]]y.z",
    "x[]]y.z",
    "a[[]b.c",
    "a[b.*",
    "*.4.*.2.*",
    r"re:model\.layers\.7\.mlp\..*",
    r"re:model\.layers\.\d\.mlp\.experts\.3\.up_proj",
    r"re:.*\.(gate|up)_proj",
    r"re:(model\.)?layers\.1",
    r"re:(?i)MODEL\.layers\.1\..*",
    r"re:model\.layers\.1\.*1*\.mlp.*",
    r"re:model.layers.1.mlp.*",
    r"re:lm_head|layers\.1",
    r"re:model\.layers\.1{1,2}\.mlp\..*",
    r"re:^model\.layers\.2\..*$",
    "nothing.like.this.*",
]


def candidates():
    return [
        Candidate(name=name, layer=None, is_matrix=True, coded_by_default=True) for name in NAMES
    ]


@pytest.mark.parametrize("text", PATTERNS)
def test_the_search_finds_what_a_look_at_every_name_finds(text):
    rule = {"match": text, "optional": True, "set": {"quantizer": {"kind": "uniform", "bits": 4}}}
    base = {"reallm": 1, "defaults": {"scales": {"kind": "absmax"}}}
    rules = load_recipe(base | {"rules": [rule]}).rules
    (found,), _ = select(rules, candidates())
    pattern = Pattern(text)
    assert found == [index for index, name in enumerate(NAMES) if pattern.matches(name)]
    for name in filter(pattern.matches, NAMES):
        assert set(pattern.parts) <= set(name.split("."))


def rules_of(count, **more):
    return {
        "reallm": 1,
        "defaults": {"scales": {"kind": "absmax"}},
        "rules": [
            {
                "match": f"*layers.{index % 12}.mlp.experts.{index % 6}.*_proj",
                "set": {"quantizer": {"kind": "uniform", "bits": 2 + index % 6}},
                **more,
            }
            for index in range(count)
        ],
    }


def test_each_expression_is_compiled_once(monkeypatch):
    match.pattern_of.cache_clear()
    compiled = []
    monkeypatch.setattr(
        "reallm_compiler.recipe.match.re.compile",
        lambda text, *flags, make=re.compile: compiled.append(text) or make(text),
    )
    document = rules_of(120)
    resolve(load_recipe(document), candidates())
    assert compiled == []  # stars alone need none
    for rule in document["rules"]:
        rule["match"] = rule["match"].replace("*_", "*[_]")
    recipe = load_recipe(document)
    resolve(recipe, candidates())
    assert len(compiled) == len({rule.match for rule in recipe.rules}) == 12


def test_few_names_are_tried_for_a_rule_with_words(monkeypatch):
    tried = []
    plain = Pattern.matches
    monkeypatch.setattr(
        Pattern, "matches", lambda self, name: tried.append(name) or plain(self, name)
    )
    recipe = load_recipe(rules_of(12))
    resolve(recipe, candidates())
    # The rarest word of each is a layer (18 names and those of experts) or an expert.
    assert len(tried) < 12 * len(NAMES) / 3


def test_rules_for_single_layers_search_their_pattern_once(monkeypatch):
    tried = []
    plain = Pattern.matches
    monkeypatch.setattr(
        Pattern, "matches", lambda self, name: tried.append(name) or plain(self, name)
    )
    defaults = {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 4}}
    rules = [
        {
            "match": "*.down_proj",
            "layers": layer,
            "set": {"quantizer": {"kind": "uniform", "bits": 3}},
        }
        for layer in range(12)
    ]
    recipe = load_recipe({"reallm": 1, "defaults": defaults, "rules": rules})
    found = [
        Candidate(name=name, layer=int(name.split(".")[2]), is_matrix=True, coded_by_default=True)
        for name in NAMES
        if name.startswith("model.layers")
    ]
    decisions = resolve(recipe, found)
    assert len(tried) == 12 * 6
    bits = {
        name: decision.plan.quantizer.model_dump()["bits"] for name, decision in decisions.items()
    }
    assert bits == {name: 3 if name.endswith("down_proj") else 4 for name in bits}


def test_a_rule_for_each_matrix_decides_each_plan_once(monkeypatch):
    """Planning takes the time of as many plans as there are, not of as many rules."""
    checked = []
    real = resolve_module.check_plan
    monkeypatch.setattr(resolve_module, "check_plan", lambda tree: checked.append(1) or real(tree))
    found = {}
    for many in (False, True):
        rules = [
            {"match": name, "set": {"quantizer": {"kind": "uniform", "bits": 2 + index % 3}}}
            for index, name in enumerate(NAMES if many else NAMES[:3])
            if not set(name) & set("[]")
        ]
        base = {"reallm": 1, "defaults": {"scales": {"kind": "absmax"}}}
        checked.clear()
        decisions = resolve(load_recipe(base | {"rules": rules}), candidates())
        found[many] = len(checked)
        bits = {decisions[name].plan.plain()["quantizer"]["bits"] for name in NAMES[:3]}
        assert bits == {2, 3, 4}
        # Who set a field is found for the one matrix that is asked for, by its own rule.
        trace = {one.path: one for one in decisions[NAMES[1]].trace}
        assert trace["quantizer.bits"].origin == "rules[1].set.quantizer.bits"
        plans = {id(decision.plan) for decision in decisions.values()}
        assert len(plans) <= 4
    assert found == {False: 4, True: 4}  # three that rules set, and the default


def test_a_rule_of_one_name_looks_at_no_other(monkeypatch):
    asked = []
    real = selection_module._Model.matching
    monkeypatch.setattr(
        selection_module._Model,
        "matching",
        lambda self, *what: asked.append(what) or real(self, *what),
    )
    base = {"reallm": 1, "defaults": {"scales": {"kind": "absmax"}}}
    quantizer = {"quantizer": {"kind": "uniform", "bits": 3}}
    rules = [{"match": name, "set": quantizer} for name in NAMES[:9]]
    found, problems = select(load_recipe(base | {"rules": rules}).rules, candidates())
    assert (found, problems, asked) == ([[index] for index in range(9)], [], [])
