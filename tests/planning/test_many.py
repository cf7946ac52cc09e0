"""A model of many matrices: what is alike is worked out once, and the numbers stay the same."""

from __future__ import annotations

import gc
from fractions import Fraction

import pytest

from reallm_compiler import plan
from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe import load_recipe
from reallm_compiler.storage.matrix import layout_of
from reallm_compiler.storage.registry import size_law_of
from reallm_formats import encode_manifest

LAYERS = 40
SHAPES = {
    f"model.layers.{layer}.mlp.{name}.weight": shape
    for layer in range(LAYERS)
    for name, shape in (("up_proj", [96, 64]), ("down_proj", [64, 96]))
}
RECIPES = ("paper-2bit", "reallm-2bit-tunable", "nf4", "rtn-4bit", "reallm-4bit-data-free")


@pytest.mark.parametrize("recipe", RECIPES)
def test_size_laws_are_asked_once_for_alike_matrices(recipe, monkeypatch):
    asked = {"sections": 0, "paper_bits": 0}
    law = type(size_law_of(load_recipe(recipe).plan.quantizer))
    for name in asked:
        method = getattr(law, name)

        def counted(*facts, method=method, name=name):
            asked[name] += 1
            return method(*facts)

        monkeypatch.setattr(law, name, counted)
    plan(recipe, model={"shapes": SHAPES}).budget()
    assert asked["paper_bits"] == 2  # two shapes under one plan
    assert 2 <= asked["sections"] < LAYERS


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_budget_is_that_of_each_matrix_by_itself(recipe):
    made = plan(recipe, model={"shapes": SHAPES})
    budget = made.budget()
    paper = Fraction(0)
    for matrix, row in zip(made.matrices, budget.matrices, strict=True):
        sharers = len(made.groups[matrix.plan.share]) if matrix.plan.share else 1
        layout = layout_of(matrix.plan, matrix.shape, matrix.dtype)
        terms = layout.paper_terms(sharers)
        assert row.paper_terms == terms
        assert row.paper_bits == sum(terms.values())
        assert row.exact_bits == Fraction(8 * row.nbytes, matrix.numel)
        assert sum(row.terms.values()) == row.nbytes
        own = sum(spec.nbytes for spec in matrix.specs if not spec.shared)
        shared = sum(spec.nbytes for spec in matrix.specs if spec.shared)
        assert abs(row.nbytes - own - Fraction(shared, sharers)) < len(matrix.specs)
        paper += row.paper_bits * matrix.numel
    assert budget.totals.paper_bits == paper / budget.totals.numel
    assert budget.totals.coded_bytes == sum(
        section.nbytes
        for section in made.layout.manifest.sections
        if section.name.startswith(("matrix:", "share:"))
    )


def test_the_length_of_the_manifest_needs_no_manifest():
    made = plan("paper-2bit", model={"shapes": SHAPES})
    assert "manifest" not in vars(made.layout)
    assert made.budget().totals.manifest_bytes == len(encode_manifest(made.layout.manifest))


def test_the_collector_rests_and_is_left_as_it_was(monkeypatch):
    resting = []
    law = type(size_law_of(load_recipe("nf4").plan.quantizer))
    sections = law.sections
    monkeypatch.setattr(
        law, "sections", lambda *facts: resting.append(not gc.isenabled()) or sections(*facts)
    )
    plan("nf4", model={"shapes": SHAPES}).budget()
    assert resting
    assert all(resting)
    assert gc.isenabled()
    with pytest.raises(RecipeError):
        plan({"reallm": 1, "rules": [{"match": "no", "keep": "source"}]}, model={"shapes": SHAPES})
    assert gc.isenabled()
