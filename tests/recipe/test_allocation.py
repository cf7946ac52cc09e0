"""The section `allocate`: what it says, the grids that it spans, and what is said of wrong ones."""

from __future__ import annotations

from fractions import Fraction

import pytest

from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe import load_recipe
from reallm_compiler.recipe.grid import MOST_VARIANTS, variants
from reallm_compiler.recipe.nodes import map_from_plain, to_plain
from reallm_compiler.units import parse_bytes

LOW_RANK = {"kind": "low_rank", "rank": 8}


@pytest.mark.parametrize(
    ("patch", "spanned"),
    [
        ({}, [{}]),
        ({"dora": [True, False]}, [{"dora": True}, {"dora": False}]),
        (
            {"quantizer": {"bits": [2, 3]}, "scales": {"block": [32, 64]}},
            [
                {"quantizer": {"bits": bits}, "scales": {"block": block}}
                for bits in (2, 3)
                for block in (32, 64)
            ],
        ),
        (
            {"quantizer": [{"kind": "uniform", "bits": [2, 3]}, {"kind": "vq", "bits": 2}]},
            [
                {"quantizer": {"kind": "uniform", "bits": 2}},
                {"quantizer": {"kind": "uniform", "bits": 3}},
                {"quantizer": {"kind": "vq", "bits": 2}},
            ],
        ),
        ({"residual": [LOW_RANK, {"kind": "sparse", "fraction": "1/100"}]}, None),
        (
            {"residual": [{**LOW_RANK, "rank": [4, 8]}]},
            [{"residual": [{**LOW_RANK, "rank": rank}]} for rank in (4, 8)],
        ),
        ({"residual": [[LOW_RANK], []]}, [{"residual": [LOW_RANK]}, {"residual": []}]),
        (
            {"transform": [[], [{"kind": "hadamard", "block": [64, 128]}]]},
            [{"transform": []}]
            + [{"transform": [{"kind": "hadamard", "block": block}]} for block in (64, 128)],
        ),
        ({"autoencoder": {"kind": "hnerv", "latent": [4, 4, 16]}}, None),
        (
            {"autoencoder": {"kind": "hnerv", "latent": [[4, 4, 16], [8, 8, 8]]}},
            [{"autoencoder": {"kind": "hnerv", "latent": one}} for one in ([4, 4, 16], [8, 8, 8])],
        ),
    ],
)  # fmt: skip
def test_lists_span_a_grid_where_a_plan_takes_one_value(patch, spanned):
    found = [to_plain(one) for one in variants(map_from_plain(patch, "r"))]
    assert found == ([patch] if spanned is None else spanned)


def test_a_grid_has_a_bound():
    several = list(range(2, 66))
    patch = {"scales": {"block": several, "superblock": several}}
    assert len(variants(map_from_plain(patch, "r"))) == MOST_VARIANTS
    patch["dora"] = [True, False]
    with pytest.raises(ValueError, match="more than 4096 plans"):
        variants(map_from_plain(patch, "r"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3.2GB", 3_200_000_000),
        ("800 MiB", 800 << 20),
        ("1.5kB", 1500),
        ("12KB", 12_000),
        ("7", 7),
        ("0.3kB", 300),
        ("1.0009kB", 1000),
        ("2TB", 2 * 10**12),
        ("3B", 3),
    ],
)
def test_sizes_are_read_exactly(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "3.2gb", "1 GB ok", "0.1B", "9999999TB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"a size"):
        parse_bytes(text)


def test_a_section_that_extends_another_wins_key_by_key(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "two.yaml").write_text("reallm: 1\nextends: nf2\n")
    (tmp_path / "sub" / "base.yaml").write_text(
        "reallm: 1\nextends: nf4\n"
        "allocate: {bytes: 1GB, scope: coded, candidates: [two.yaml, nf3], lock: a}\n"
    )
    (tmp_path / "own.yaml").write_text("reallm: 1\nextends: sub/base.yaml\nallocate: {bits: 5/2}\n")
    allocation = load_recipe(tmp_path / "own.yaml").allocate
    assert [one.label for one in allocation.candidates] == ["two.yaml", "nf3"]
    assert (allocation.target.unit, allocation.target.amount) == ("bits", Fraction(5, 2))
    assert (allocation.target.scope, allocation.target.text) == ("coded", "5/2")
    assert [one.text for one in allocation.lock] == ["a"]
    assert load_recipe(tmp_path / "own.yaml").document == load_recipe("nf4").document


WRONG = {
    "nothing to choose from": (
        "allocate: {bytes: 1GB}",
        "r.yaml:3:11: allocate.candidates: there are no candidates to choose from (name recipes or "
        "parts of plans, such as `candidates: [reallm-2bit, reallm-3bit]`)",
    ),
    "both targets": (
        "allocate: {bytes: 1GB, bits: 2, candidates: [nf2]}",
        "r.yaml:3:11: allocate: a target is either `bytes` or `bits`; this section has both",
    ),
    "no size": (
        "allocate: {bytes: 1 ton, candidates: [nf2]}",
        "r.yaml:3:19: allocate.bytes: expected a size such as `3.2GB`, `800MiB` or a number of "
        "bytes, got `1 ton`",
    ),
    "too many bits": (
        "allocate: {bits: 65, candidates: [nf2]}",
        "r.yaml:3:18: allocate.bits: expected bits per weight above 0 and up to 64, such as 5/2",
    ),
    "an unknown key": (
        "allocate: {byte: 1GB, candidates: [nf2]}",
        "r.yaml:3:12: allocate.byte: unknown key `byte` (did you mean `bytes`?)",
    ),
    "an unknown recipe": (
        "allocate: {candidates: [nf22]}",
        "r.yaml:3:25: allocate.candidates[0]: there is no shipped recipe `nf22`, and no file of "
        "that name (did you mean `nf2`?)",
    ),
    "a recipe that needs statistics": (
        "allocate: {candidates: [nf2, reallm-2bit]}",
        "r.yaml:3:30: allocate.candidates[1]: `reallm-2bit` needs measured statistics, and this "
        "recipe asks for none (add `statistics: required` to the recipe)",
    ),
    "a recipe that prepares the model": (
        "allocate: {candidates: [quarot-4bit]}\nstatistics: required",
        "r.yaml:3:25: allocate.candidates[0]: `quarot-4bit` prepares the whole model, and a "
        "candidate is one matrix's plan (write the same `prepare` into this recipe)",
    ),
    "a recipe that chooses": (
        "allocate: {candidates: [lq-lora-mixed]}",
        "allocate: a candidate is a plan, and this recipe chooses among plans itself",
    ),
    "a key of no plan": (
        "allocate: {candidates: [{quantiser: {bits: 2}}]}",
        "r.yaml:3:26: allocate.candidates[0].quantiser: unknown key `quantiser` (did you mean "
        "`quantizer`?)",
    ),
    "a value of a grid": (
        "allocate: {candidates: [{quantizer: {bits: [2, 3, 44]}}]}",
        "r.yaml:3:51: allocate.candidates[0].quantizer.bits[2]: `44` is too large: at most 8",
    ),
    "no combination": (
        "allocate: {candidates: [{quantizer: {kind: vq, bits: [6, 8], dim: 4}}]}",
        "allocate.candidates[0].quantizer: ",
    ),
    "a rule that keeps": (
        "allocate: {candidates: [{match: a, keep: source}]}",
        "r.yaml:3:25: allocate.candidates[0]: a candidate that is a rule needs `set`; `keep` is no "
        "candidate",
    ),
    "a rule without what it matches": (
        "allocate: {candidates: [{set: {dora: true}}]}",
        "r.yaml:3:25: allocate.candidates[0]: `match` is missing: it selects the "
        "tensors of the rule",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_where_it_stands(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"reallm: 1\nextends: nf4\n{text}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_problems_are_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "reallm: 1\nextends: nf4\nallocate:\n  candidates:\n    - nf22\n    - {dora: 1}\n"
        "    - {quantizer: {bit: [2, 3]}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert [problem.location for problem in caught.value.problems] == [
        "r.yaml:5:7",
        "r.yaml:6:14",
        "r.yaml:7:20",
    ]


def test_combinations_that_fit_nowhere_are_left_out():
    recipe = load_recipe(
        {
            "reallm": 1,
            "extends": "paper-2bit",
            "allocate": {"candidates": [{"quantizer": {"bits": [2, 3, 4], "dim": [2, 4, 8]}}]},
        }
    )
    found = [to_plain(one.patch)["quantizer"] for one in recipe.allocate.candidates]
    assert all(one["bits"] * one["dim"] <= 16 for one in found)
    assert {(one["bits"], one["dim"]) for one in found} >= {(2, 2), (2, 8), (4, 4)}
    assert (4, 8) not in {(one["bits"], one["dim"]) for one in found}
