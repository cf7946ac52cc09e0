"""Plan -> manifest -> plan gives the same plan; a manifest that lies is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.errors import FormatError
from reallm_compiler.planning.document import PROVENANCE_WIDTH, fixed_text, from_manifest
from reallm_compiler.planning.model import Plan

RECIPE = {
    "reallm": 1,
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2, "dtype": "int8"},
        "permutation": {"kind": "nearest", "rows": 8},
        "scales": {"kind": "minmax", "block": 16, "bits": 4, "superblock": 4},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
        "share": "all",
        "dora": True,
    },
    "rules": [{"match": "b", "set": {"quantizer": {"kind": "uniform", "bits": 3}, "share": None}}],
}


@pytest.fixture
def plan() -> Plan:
    shapes = {"a.weight": [20, 33], "b.weight": [7, 5], "c.weight": [1, 9]}
    return reallm.plan(RECIPE, model={"shapes": shapes})


def test_round_trip(plan: Plan) -> None:
    again = from_manifest(plan.layout.manifest, plan.layout)
    assert again.matrices == plan.matrices
    assert again.tensors == plan.tensors
    assert again.recipe == plan.recipe
    assert again.budget().totals == plan.budget().totals


def plan_of_changed(plan: Plan, change: str, value: Any) -> Plan:
    """The plan of a manifest in which one thing was changed."""
    manifest = plan.layout.manifest
    document = copy.deepcopy(dict(manifest.document))
    sections = list(manifest.sections)
    if change == "method":
        document["methods"][0].update(value)
    elif change == "row":
        document["matrices"][1].update(value)
    else:
        index = next(i for i, section in enumerate(sections) if section.name == change)
        sections[index] = replace(sections[index], **value)
    return from_manifest(
        replace(manifest, document=document, sections=tuple(sections)), plan.layout
    )


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("method", {"quantizer": {"kind": "vq", "bits": 3, "dim": 2}}, "asks for"),
        ("method", {"quantizer": {"kind": "vq", "bits": 30, "dim": 2}}, "does not know"),
        ("method", {"dora": "yes"}, "does not know"),
        ("method", {"residual": {"kind": "low_rank", "rank": "1e999999999"}}, "does not know"),
        ("row", {"shape": [8, 5]}, "asks for"),
        ("row", {"method": 9}, "does not exist"),
        ("matrix:a/codes", {"dtype": "b5"}, "asks for"),
        ("matrix:b/codes", {"shape": (7, 6)}, "asks for"),
    ],
)
def test_a_manifest_that_lies_is_refused(plan: Plan, change: str, value: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        plan_of_changed(plan, change, value)


def test_members_of_a_group_agree(plan: Plan) -> None:
    document = copy.deepcopy(dict(plan.layout.manifest.document))
    document["methods"][1] = {
        **document["methods"][0],
        "quantizer": {**document["methods"][0]["quantizer"], "bits": 1},
    }
    with pytest.raises(FormatError, match="differ in what they share"):
        from_manifest(replace(plan.layout.manifest, document=document), plan.layout)


def test_texts_of_the_provenance_have_one_width() -> None:
    for text in ("", "2.13.0+cpu", "x" * 99, "naïve"):
        assert len(fixed_text(text).encode()) == PROVENANCE_WIDTH
