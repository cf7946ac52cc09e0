"""Rules on the best recipes: a group of the whole model divides, and each part has its table."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.reader.verify import verify

QUICK = {"quantizer": {"state_bits": 6, "iterations": 2}}
EMBEDDINGS = ["*.embed_tokens", "lm_head"]
RULES: dict[str, list[dict[str, Any]]] = {
    "all fields of an embedding": [
        {
            "match": EMBEDDINGS,
            "set": {
                "quantizer": {"kind": "uniform", "bits": 8},
                "scales": {"kind": "absmax", "per": "row", "dtype": "float16"},
                "transform": [],
                "share": None,
            },
            "optional": True,
        }
    ],
    "the quantizer of an embedding": [
        {
            "match": EMBEDDINGS,
            "set": {"quantizer": {"kind": "uniform", "bits": 8}},
            "optional": True,
        }
    ],
    "more bits of an embedding": [
        {"match": EMBEDDINGS, "set": {"quantizer": {"bits": 5}}, "optional": True}
    ],
    "mixed bits": [
        {"match": "*.down_proj", "layers": "0,-1", "set": {"quantizer": {"bits": 5}}},
        {"match": "*", "layers": "1..2", "set": {"quantizer": {"bits": 2}}},
    ],
    "another kind": [
        {"match": "*.down_proj", "set": {"quantizer": {"kind": "normal_float", "bits": 4}}},
        {"match": "*.o_proj", "set": {"quantizer": {"kind": "vq", "bits": 2, "dim": 2}}},
    ],
}


@pytest.mark.parametrize("case", RULES)
def test_bits_are_what_the_rule_says(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = {
        "reallm": 1,
        "extends": "reallm-3bit-data-free",
        "defaults": QUICK,
        "rules": RULES[case],
    }
    output = tmp_path / "mixed.reallm"
    report = reallm.compile(recipe, model=tiny_llama, output=output, device="cpu")
    assert output.stat().st_size == report.budget.totals.file_bytes
    assert verify(output) == []
    with reallm.open(output) as archive:
        for matrix in archive.plan.matrices:
            quantizer = matrix.plan.quantizer.model_dump()
            assert quantizer["kind"] != "none"
            # A normal weight coded with b bits loses at most a factor of 3 to 2^-b.
            assert report.errors[matrix.name] < 3 * 2.0 ** -float(Fraction(quantizer["bits"]))
    assert reallm.plan(archive.plan.recipe, model=tiny_llama).groups == archive.plan.groups
