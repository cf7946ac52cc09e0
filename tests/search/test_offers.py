"""What each matrix may get, and the choice among it by the planner's own bytes."""

from __future__ import annotations

import pytest

from reallm_compiler.errors import RecipeError
from reallm_compiler.planning.build import open_model
from reallm_compiler.recipe import load_recipe
from reallm_compiler.recipe.allocation import target_of_bytes
from reallm_compiler.search.choose import choose
from reallm_compiler.search.damage import Damage
from reallm_compiler.search.lock import Chosen, lock_document, lock_rules, lock_text
from reallm_compiler.search.offers import find_offers
from reallm_compiler.search.search import Search
from reallm_compiler.search.solver import smallest

NAMES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
SHAPES = {
    f"model.layers.{layer}.{name}.weight": [128, 192] if name == "mlp.down_proj" else [192, 128]
    for layer in range(2)
    for name in NAMES
} | {"lm_head.weight": [320, 128], "model.norm.weight": [128]}


def recipe_of(allocate, **more):
    plain = {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 4},
        },
    }
    return load_recipe({**plain, **more, "allocate": {"bytes": "1MB", **allocate}})


def offers_of(recipe):
    inventory = open_model(recipe, {"shapes": SHAPES}, weights=False)
    return find_offers(recipe, recipe.allocate, inventory), inventory


def plans(offers, name):
    return [(one.candidates, one.layout.plan) for one in offers.of[name]]


def test_parts_of_plans_are_put_over_a_matrix_own_plan():
    head = {"role": "head", "set": {"quantizer": {"bits": 8}, "dora": True}}
    candidates = [{"quantizer": {"bits": [2, 4]}}, {}, {"role": "head", "set": {"dora": False}}]
    offers, _ = offers_of(recipe_of({"candidates": candidates}, rules=[head]))
    query = plans(offers, "model.layers.0.self_attn.q_proj")
    assert [(found, plan.quantizer.bits, plan.dora) for found, plan in query] == [
        ((0,), 2, False),
        ((1, 2), 4, False),  # its own plan is what the second of the grid makes too
    ]
    of_head = plans(offers, "lm_head")
    assert [(found, plan.quantizer.bits, plan.dora) for found, plan in of_head] == [
        ((0,), 2, True),
        ((1,), 4, True),
        ((2,), 8, True),
        ((3,), 8, False),
    ]
    assert set(offers.of) == {name.removesuffix(".weight") for name in SHAPES} - {"model.norm"}


def test_a_named_recipe_gives_what_it_says_of_the_matrix(tmp_path):
    (tmp_path / "other.yaml").write_text(
        "reallm: 1\ndefaults: {scales: {kind: absmax}, quantizer: {kind: normal_float, bits: 3}}\n"
        "rules:\n  - {match: '*.up_proj', set: {quantizer: {bits: 4}}}\n"
        "  - {match: '*.down_proj', keep: source}\n"
    )
    (tmp_path / "choose.yaml").write_text(
        "reallm: 1\nextends: nf4\nallocate: {bits: 3, candidates: [nf2, other.yaml]}\n"
    )
    recipe = load_recipe(tmp_path / "choose.yaml")
    assert [one.label for one in recipe.allocate.candidates] == ["nf2", "other.yaml"]
    offers, _ = offers_of(recipe)
    bits = {
        name: [plan.quantizer.bits for _, plan in plans(offers, f"model.layers.0.{name}")]
        for name in NAMES
    }
    assert bits == {
        "self_attn.q_proj": [2, 3],
        "self_attn.k_proj": [2, 3],
        "mlp.up_proj": [2, 4],
        "mlp.down_proj": [2],
    }
    assert "lm_head" not in offers.of  # neither codes it


def test_what_does_not_fit_the_other_stages_is_not_offered():
    head = {"role": "head", "set": {"quantizer": {"kind": "vq", "bits": 2, "dim": 2}}}
    candidates = [{"quantizer": {"dim": [1, 2, 4]}}, {"quantizer": {"bits": [3, 6]}}]
    offers, _ = offers_of(recipe_of({"candidates": candidates}, rules=[head]))
    assert [found for found, _ in plans(offers, "lm_head")] == [(0,), (1,), (2,), (3,), (4,)]
    for name in NAMES:  # a uniform quantizer has no `dim`
        assert [found for found, _ in plans(offers, f"model.layers.0.{name}")] == [(3,), (4,)]


def test_groups_are_modules_by_words_and_layers_by_patterns():
    groups = [["q_proj", "k_proj"], ["*.up_proj", "*.down_proj"]]
    offers, _ = offers_of(
        recipe_of({"candidates": [{"quantizer": {"bits": [2, 3]}}], "groups": groups})
    )
    assert sorted(
        sorted(name.partition("layers.")[2] for name in unit) for unit in offers.units
    ) == [
        ["0.mlp.down_proj", "0.mlp.up_proj"],
        ["0.self_attn.k_proj", "0.self_attn.q_proj"],
        ["1.mlp.down_proj", "1.mlp.up_proj"],
        ["1.self_attn.k_proj", "1.self_attn.q_proj"],
    ]


def falling_damages(offers):
    """Damages that fall with bytes, and more in some matrices."""
    return {
        name: [
            Damage(error=0.0, kl=(1 + index) * 4.0 ** -float(one.layout.plan.quantizer.bits))
            for one in several
        ]
        for index, (name, several) in enumerate(offers.of.items())
    }


@pytest.mark.parametrize("scope", ["file", "coded"])
@pytest.mark.parametrize("share", [None, "codes"])
def test_no_matrix_is_left_whose_next_plan_would_fit(scope, share):
    quantizer = {"kind": "vq", "dim": 2, "bits": [2, 3, 4]}
    recipe = recipe_of(
        {"candidates": [{"quantizer": quantizer, "share": share}]},
        rules=[{"role": "head", "set": {}}],
    )
    offers, inventory = offers_of(recipe)
    search = Search(recipe, recipe.allocate, inventory, offers, falling_damages(offers), scope)
    program = search.program
    small = search.exact(smallest(program))
    for more in (0, 5_000, 17_000, 33_000):
        limit = search.limit(target_of_bytes(small + more, scope))
        choice = choose(program, limit, search.exact)
        assert search.exact(choice) <= limit
        for unit, options in enumerate(program.units):
            for index, option in enumerate(options):
                if option.damage < options[choice[unit]].damage:
                    assert search.exact((*choice[:unit], index, *choice[unit + 1 :])) > limit
        # What the program adds up is right but for the text of the rules and a few heads.
        beyond = search.exact(choice) - program.nbytes(choice)
        least = (0,) * len(program.units)
        assert abs(beyond - (search.exact(least) - program.nbytes(least))) <= (
            256 if scope == "file" else 0
        )


def test_matrices_of_a_group_need_a_candidate_in_common():
    candidates = [
        {"match": "*.q_proj", "set": {"quantizer": {"bits": 2}}},
        {"match": "*.k_proj", "set": {"quantizer": {"bits": 3}}},
    ]
    recipe = recipe_of({"candidates": candidates, "groups": [["q_proj", "k_proj"]]})
    offers, inventory = offers_of(recipe)
    assert offers.left == tuple(
        f"model.layers.{layer}.mlp.{name}"
        for layer in range(2)
        for name in ("down_proj", "up_proj")
    )
    with pytest.raises(RecipeError, match=r"groups: no candidate fits all of .*q_proj"):
        Search(recipe, recipe.allocate, inventory, offers, falling_damages(offers), "file")


def test_a_candidate_that_fits_no_matrix_is_an_error():
    head = {"role": "head", "set": {"quantizer": {"kind": "vq", "bits": 2, "dim": 2}}}
    only = {"match": "*.q_proj", "set": {"quantizer": {"dim": 2}}}
    for wrong, said in (
        (only, "fits no matrix that is chosen for (`dim` is not a parameter of `uniform`"),
        ({"role": "embedding", "set": {"dora": True}}, "has the role `embedding`"),
        ({"rounding": {"kind": "feedback"}}, "add `statistics: required`"),
    ):
        with pytest.raises(RecipeError) as caught:
            offers_of(recipe_of({"candidates": [{"quantizer": {"bits": 2}}, wrong]}, rules=[head]))
        assert said in str(caught.value)
        assert "allocate.candidates[1]" in str(caught.value)


def test_a_recipe_for_ten_thousand_matrices_can_be_read_again(tmp_path):
    recipe = recipe_of({"candidates": [{"quantizer": {"bits": [2, 3]}}]})
    own = recipe.plan
    other = own.model_copy(update={"quantizer": own.quantizer.model_copy(update={"bits": 2})})
    names = [
        f"vision_model.language_model.model.layers.{layer}.mlp.experts.{expert}.{kind}_proj"
        for layer in range(30)
        for expert in range(110)
        for kind in ("gate", "up", "down")
    ]
    chosen = [
        Chosen(name=name, candidate="a", own=own, plan=(own, other)[index % 2])
        for index, name in enumerate(names)
    ]
    rules = lock_rules(chosen, ["a"])
    notes = dict.fromkeys(names, "2.1877 bits, KL 0.000123")
    path = tmp_path / "lock.yaml"
    path.write_text(lock_text(recipe, rules, ["Chosen."], notes))
    assert path.stat().st_size > 1 << 20
    assert load_recipe(path).document == load_recipe(lock_document(recipe, rules)).document


def test_any_name_is_matched_by_its_own_rule_alone():
    recipe = recipe_of({"candidates": [{"quantizer": {"bits": 2}}]})
    names = ["a.[0].b", "a.0.b", "a.*.b", "re:a", "a?"]
    chosen = [Chosen(name=n, candidate="a", own=recipe.plan, plan=recipe.plan) for n in names]
    for name, one in zip(names, chosen, strict=True):
        (rule,) = lock_rules([one], ["a"])
        (pattern,) = load_recipe(lock_document(recipe, [rule])).rules[0].match
        assert [other for other in names if pattern.matches(other)] == [name]
