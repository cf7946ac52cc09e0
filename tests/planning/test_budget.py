"""The budget: exact numbers of the paper's shapes, and terms that add up for any model."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reallm_compiler as reallm
from reallm_compiler.errors import RecipeError
from reallm_compiler.storage.matrix import TERMS
from tests.plans import some_plan

SQUARE = {"shapes": {"layers.0.q_proj.weight": [4096, 4096]}}


def test_the_papers_setting_at_4096() -> None:
    (row,) = reallm.plan("paper-2bit", model=SQUARE).budget().matrices
    weights = 4096 * 4096
    bits = {term: Fraction(8 * size, weights) for term, size in row.terms.items()}
    assert row.paper_bits == Fraction("2.5009765625")
    assert bits["codes"] == 2
    assert bits["scales"] == Fraction("0.126953125") + Fraction(32, weights)  # one fp32 offset
    assert bits["permutation"] == Fraction("0.09375")
    assert bits["low_rank"] == Fraction("0.5")
    assert bits["dora"] == Fraction("0.00390625")
    # Paper: 16 bits an entry; stored: 8, and one fp32 scale.
    assert bits["codebook"] == Fraction("0.0009765625") / 2 + Fraction(32, weights)
    assert row.exact_bits == sum(bits.values())


def test_llama_2_7b_from_its_bare_config() -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000}
    papers = {"role": ["embedding", "head"], "keep": "source"}
    recipe = {"reallm": 1, "extends": "paper-2bit", "rules": [papers]}
    plan = reallm.plan(recipe, model={"model_type": "llama", **sizes})
    totals = plan.budget().totals
    assert totals.numel == 6_476_005_376
    assert totals.low_rank_parameters == 159_907_840
    assert any("tokenizer" in note for note in plan.notes)


LLAMA_3_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}


def test_what_weighs_outside_the_layers_is_coded() -> None:
    """Embedding and head of Llama-3-8B were 48 % of its file at 2 bits."""
    pytest.importorskip("transformers")
    budget = reallm.plan("paper-2bit", model=LLAMA_3_8B).budget()
    rows = {row.name: row for row in budget.matrices}
    for name in ("model.embed_tokens", "lm_head"):
        assert rows[name].exact_bits == 8 + Fraction(32, 4096)
    assert budget.totals.kept_bytes < 0.001 * budget.totals.file_bytes
    assert budget.totals.file_bytes < 3_301_000_000  # 4,350,537,920 with both in bfloat16


def test_json_keys_are_the_documented_ones() -> None:
    budget = json.loads(json.dumps(reallm.plan("nf4", model=SQUARE).budget().to_json()))
    assert set(budget) == {"matrices", "totals", "notes", "warnings"}
    (row,) = budget["matrices"]
    assert set(row) == {
        "name",
        "shape",
        "transposed",
        "paper_bits",
        "exact_bits",
        "bytes",
        "terms",
        "decode_macs",
        "training_operations",
    }
    assert row["name"] == "layers.0.q_proj"
    assert row["shape"] == [4096, 4096]
    assert set(row["terms"]) == set(TERMS)
    assert set(budget["totals"]) == {
        "numel",
        "low_rank_parameters",
        "paper_bits",
        "exact_bits",
        "coded_bytes",
        "kept_bytes",
        "header_bytes",
        "manifest_bytes",
        "padding_bytes",
        "other_bytes",
        "file_bytes",
        "decode_macs",
        "training_operations",
        "parameters",
        "model_bits",
        "source_bytes",
        "ratio",
    }


SHAPES = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(draw=st.integers(0, 2**32 - 1), shapes=SHAPES)
def test_byte_terms_add_up(draw: int, shapes: list[tuple[int, int]]) -> None:
    plan = some_plan(random.Random(draw)).plain()
    model = {"shapes": {f"m{number}.weight": list(shape) for number, shape in enumerate(shapes)}}
    try:
        made = reallm.plan({"reallm": 1, "defaults": plan}, model=model)
    except RecipeError:  # a plan that does not fit a shape
        return
    budget = made.budget()
    for row in budget.matrices:
        assert sum(row.terms.values()) == row.nbytes
    totals = budget.totals
    assert sum(row.nbytes for row in budget.matrices) == totals.coded_bytes
    assert totals.file_bytes == (
        totals.coded_bytes
        + totals.kept_bytes
        + totals.header_bytes
        + totals.manifest_bytes
        + totals.padding_bytes
        + totals.other_bytes
    )
    last = made.layout.manifest.sections[-1]
    assert totals.file_bytes == last.offset + last.nbytes


def test_a_shared_codebook_is_counted_once_and_divided() -> None:
    recipe = {
        "reallm": 1,
        "defaults": {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}, "share": "all"},
    }
    shapes = {f"layers.{n}.up_proj.weight": [64, 64] for n in range(3)}
    budget = reallm.plan(recipe, model={"shapes": shapes}).budget()
    parts = [row.terms["codebook"] for row in budget.matrices]
    assert sum(parts) == 256 * 4 + 4
    assert max(parts) - min(parts) <= 2  # one byte of each of two sections


@pytest.mark.parametrize("as_file", [True, False])
def test_what_fits_no_matrix_is_reported_at_the_users_own_line(
    as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"match": "*.q_proj", "set": {"autoencoder": {"decoder_params": 10}}}
    recipe: object = {"reallm": 1, "extends": "paper-hnerv", "rules": [rule]}
    where = "recipe: rules[0].set.autoencoder.decoder_params"
    if as_file:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        recipe, where = "r.yaml", "r.yaml:1"
    with pytest.raises(RecipeError) as caught:
        reallm.plan(recipe, model=SQUARE)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.location == where
    assert problem.path == "rules[0].set.autoencoder.decoder_params"
