"""The survey: structure where there is some, none in noise, recipes compared fairly."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

import reallm_compiler as reallm
from reallm_compiler.errors import EvaluationError, SourceError
from reallm_compiler.evaluate import charts
from reallm_compiler.evaluate.charts import PANELS, draw_survey, panels
from reallm_compiler.evaluate.regimes import (
    LOW_RANK_NET_BITS,
    STRONG_BITS,
    WEAK_BITS,
    best_of,
    explain,
    gap_bits,
    measures,
    structure_of,
)
from reallm_compiler.evaluate.survey import survey_model
from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.planning.build import plan
from tests.evaluate.samples import P, Q, image, noise


def smooth(count, octaves):
    """Deviations that change slowly."""
    return torch.exp2(octaves * torch.sin(torch.linspace(0, 7, count)))


def field(p, q):
    """Deviations that change slowly over both axes at once, and on average over none."""
    return torch.exp2(1.5 * torch.sin(torch.linspace(0, 9, p)[:, None] + torch.linspace(0, 5, q)))


MATRICES = {
    "image": image() + 0.05 * noise(1),
    "faint image": 0.6 * image() + noise(2),
    "shuffled image": image()[torch.randperm(P, generator=torch.Generator().manual_seed(0))][
        :, torch.randperm(Q, generator=torch.Generator().manual_seed(1))
    ],
    "low rank": 8 * noise(3, P, 1) @ noise(4, 1, Q) + noise(5),
    "two scales": torch.cat([noise(7, P // 2), 4 * noise(8, P // 2)]),
    "smooth rows": smooth(192, 1.5)[:, None] * noise(10, 192, 256),
    "smooth columns": smooth(256, 1.5) * noise(11, 192, 256),
    "smooth both": smooth(192, 1.5)[:, None] * smooth(256, 1.5) * noise(12, 192, 256),
    "smooth field": field(192, 256) * noise(13, 192, 256),
    "even magnitudes": smooth(192, 0.4)[:, None] * noise(14, 192, 256),
    "image under scales": smooth(256, 1.0) * (0.7 * image(192, 256) + noise(15, 192, 256)),
    "noise": noise(6),
    "zeros": torch.zeros(P, Q),
}
NAMES = {name: f"model.layers.{layer}.mlp.up_proj" for layer, name in enumerate(MATRICES)}


def recipe(tmp_path, name, quantizer, rules=""):
    path = tmp_path / f"{name}.yaml"
    path.write_text(
        "reallm: 1\n"
        "defaults:\n"
        "  residual: {kind: none}\n"
        "  scales: {kind: absmax, per: row}\n"
        f"  quantizer: {quantizer}\n"
        "  dora: false\n" + rules
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    tensors = {f"{NAMES[name]}.weight": weight for name, weight in MATRICES.items()}
    tensors["model.embed_tokens.weight"] = noise(9, 40, 16)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.fixture(scope="module")
def found(model):
    survey = survey_model(model)
    return {name: row for name in NAMES for row in survey.matrices if row.name == NAMES[name]}


@pytest.fixture(scope="module")
def tried(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    some = f"rules:\n  - {{match: '{NAMES['zeros']}', keep: source}}\n"
    return survey_model(
        model,
        recipes=[
            recipe(folder, "two", "{kind: vq, bits: 2, dim: 2}", some),
            recipe(folder, "four", "{kind: uniform, bits: 4}", some),
            recipe(folder, "coarse", "{kind: uniform, bits: 3}", some),
        ],
        workers=1,
    )


@pytest.mark.parametrize(
    ("name", "structure", "expected"),
    [
        ("image", "strong", "small latent with a large decoder (`hnerv`) is worth trying"),
        ("faint image", "weak", "weak structure was found"),
        ("shuffled image", "none", "no structure was found"),
        ("low rank", "none", "a low-rank part pays: rank 1 holds 9"),
        ("two scales", "none", "but for their magnitudes, which differ too little"),
        ("smooth rows", "magnitudes", "change from row to row, and a scale for each row saves 0.2"),
        ("smooth rows", "magnitudes", "`normalize` with `per: row` take it; with them a large"),
        ("smooth columns", "magnitudes", "a scale for each column saves 0.2"),
        ("smooth both", "magnitudes", "from row to row and from column to column"),
        ("smooth both", "magnitudes", "one of them and the transform `normalize` the other"),
        ("smooth field", "magnitudes", "from block to block"),
        ("even magnitudes", "none", "but for their magnitudes, which differ too little"),
        ("image under scales", "weak", "magnitudes change from column to column"),
        ("noise", "none", "as in white noise; a large latent with a small decoder fits"),
        ("zeros", "none", "all weights are zero"),
    ],
)
def test_structure_is_reported_in_words(found, name, structure, expected):
    assert found[name].structure == structure
    assert expected in found[name].explanation


def test_magnitudes_are_distinguished_from_order(found):
    for name in ("smooth rows", "smooth columns", "smooth both", "smooth field"):
        assert found[name].structure_bits == 0
        assert "in the magnitudes alone, not in the signs" in found[name].explanation
        assert "white noise" not in found[name].explanation
    for name in ("image", "noise", "low rank", "shuffled image"):
        assert "scale" not in found[name].explanation


def test_a_trained_decoder_on_noise_is_reported_behind(found):
    row = found["noise"]
    tried = measures([("vq", sizes(2), 0.3), ("hnerv", sizes(2, decoder=3), 0.45)])
    text = explain(0.0, row.spectrum, (), (), tried)
    assert "no structure was found" in text
    assert (
        "vq is best at equal exact bits, a recipe without a trained decoder leads by 0.58" in text
    )
    tried = measures([("vq", sizes(2), 0.3), ("hnerv", sizes(2, decoder=3), 0.15)])
    text = explain(4.0, found["image"].spectrum, (), (), tried)
    assert "structure was found" in text
    assert "hnerv is best at equal exact bits, the trained decoder leads by 1.00" in text


def test_noise_has_nothing_to_gain_from(found):
    row = found["noise"]
    assert row.structure_bits == 0
    assert max(part.net_bits for part in row.spectrum.low_rank) < LOW_RANK_NET_BITS
    assert "low-rank" not in row.explanation
    assert "scale" not in row.explanation
    assert "magnitude" not in row.explanation
    assert max(one.net_bits for one in row.gains) < 0
    assert row.explanation.endswith("plain VQ")


def test_thresholds_are_where_they_stand():
    assert [structure_of(bits) for bits in (0, WEAK_BITS, STRONG_BITS)] == [
        "none",
        "weak",
        "strong",
    ]
    assert structure_of(WEAK_BITS - 1e-9) == "none"
    assert structure_of(STRONG_BITS - 1e-9) == "weak"
    # The words beside the numbers: an `ordered` of 0.71 along one axis, of 0.54 along both.
    assert 0.5 * math.log2(1 / (1 - 0.71**2)) == pytest.approx(STRONG_BITS, abs=0.01)
    assert math.log2(1 / (1 - 0.54**2)) == pytest.approx(STRONG_BITS, abs=0.01)
    assert 0.5 * math.log2(1 / (1 - 0.17**2)) == pytest.approx(WEAK_BITS, abs=0.002)


def sizes(bits, **terms):
    return MatrixBudget(
        name="m",
        shape=(8, 8),
        paper_bits=Fraction(bits),
        exact_bits=Fraction(bits),
        nbytes=int(8 * bits),
        terms=terms,
        paper_terms={},
        decode_macs=0,
        training_operations=0,
    )


def test_recipes_are_compared_at_equal_exact_bits():
    rows = measures(
        [
            ("good", sizes(2), 0.30),
            ("large", sizes(4), 0.10),
            ("worse", sizes(2), 0.35),
            ("wasteful", sizes(5), 0.12),
            ("trained", sizes(1, decoder=3), 0.9),
        ]
    )
    by_name = {row.recipe: row for row in rows}
    assert {name: row.best_within for name, row in by_name.items()} == {
        "good": "good",
        "large": "large",
        "worse": "good",
        "wasteful": "large",
        "trained": "trained",
    }
    assert best_of(rows).recipe == "good"
    assert [name for name, row in by_name.items() if row.trained] == ["trained"]
    assert gap_bits(Fraction(2), 0.25) == 0  # the bound for white noise at 2 bits
    assert gap_bits(Fraction(2), 0.5) == 1
    assert gap_bits(Fraction(2), 0.0) == -math.inf
    assert best_of([]) is None


def test_a_trial_has_the_planned_bits(tried, model, tmp_path):
    rows = {row.name: row for row in tried.matrices}
    assert rows[NAMES["zeros"]].measures == ()
    assert rows[NAMES["zeros"]].best is None
    noisy = {one.recipe: one for one in rows[NAMES["noise"]].measures}
    assert list(noisy) == ["two", "four", "coarse"]
    planned = plan(recipe(tmp_path, "four", "{kind: uniform, bits: 4}"), model=model).budget()
    assert noisy["four"].nbytes == planned.matrices[0].nbytes
    assert noisy["four"].exact_bits == Fraction(8 * noisy["four"].nbytes, P * Q)
    assert noisy["two"].relative_error > noisy["coarse"].relative_error
    assert "measured: " in rows[NAMES["noise"]].explanation
    total = {row.recipe: row for row in tried.recipes}
    assert total["two"].matrices == len(MATRICES) - 1
    assert sum(row.best for row in tried.recipes) == len(MATRICES) - 1
    errors = [one.relative_error for row in tried.matrices for one in row.measures[:1]]
    assert min(errors) < total["two"].relative_error < max(errors)


def test_embeddings_are_surveyed_when_asked_for(model, found):
    assert "model.embed_tokens" not in [row.name for row in found.values()]
    survey = survey_model(model, only="*embed*")
    assert [row.name for row in survey.matrices] == ["model.embed_tokens"]
    assert survey.matrices[0].layer is None


def test_two_files_of_one_name_stay_apart(model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [
        recipe(tmp_path / "a", "same", "{kind: uniform, bits: 4}"),
        recipe(tmp_path / "b", "same", "{kind: uniform, bits: 2}"),
    ]
    survey = survey_model(model, recipes=paths, only=NAMES["noise"])
    assert [row.recipe for row in survey.recipes] == [str(path) for path in paths]


def test_the_json_is_plain_and_whole(tried):
    payload = json.loads(json.dumps(tried.to_json()))
    assert set(payload) == {"matrices", "recipes", "advice"}
    least = min(payload["recipes"], key=lambda one: one["gap_bits"])
    assert (payload["advice"]["recipe"], payload["advice"]["measured"]) == (least["recipe"], True)
    row = payload["matrices"][0]
    assert (row["name"], row["shape"], row["layer"]) == (NAMES["image"], [P, Q], 0)
    assert row["best"] in {one["recipe"] for one in row["recipes"]}
    assert row["spectrum"]["low_rank"][0]["fraction"] == "1/64"


@pytest.mark.parametrize(
    ("only", "recipe"),
    [("*", "reallm-2bit"), (NAMES["image"], "paper-hnerv")],
    ids=["mostly noise", "structure"],
)
def test_without_a_trial_a_shipped_recipe_is_named(model, only, recipe):
    advice = survey_model(model, only=only).advice
    assert (advice.recipe, advice.measured) == (recipe, False)


def test_a_recipe_that_needs_statistics_is_not_tried(model):
    with pytest.raises(EvaluationError, match="compares the errors of weights") as caught:
        survey_model(model, recipes=["reallm-2bit"])
    assert "`reallm-2bit-data-free`" in (caught.value.hint or "")


def test_what_cannot_be_surveyed_is_reported(model, tmp_path):
    with pytest.raises(EvaluationError, match="matches no matrix"):
        survey_model(model, only="*nothing*")
    with pytest.raises(SourceError, match="no weights"):
        survey_model({"shapes": {"layers.0.q_proj.weight": [8, 8]}})
    bad = noise(0)
    bad[3, 4] = math.nan
    save_file({"layers.0.q_proj.weight": bad}, tmp_path / "nan.safetensors")
    with pytest.raises(EvaluationError, match="not a finite number") as caught:
        survey_model(tmp_path / "nan.safetensors")
    assert caught.value.location == "layers.0.q_proj"


def test_pictures_are_drawn_alike(tried, tmp_path):
    first, second = (draw_survey(tmp_path / name, tried) for name in "ab")
    assert [path.name for path in first] == ["spectrum.png", "structure.png", "error.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.read_bytes().startswith(b"\x89PNG")
    assert next(iter(panels(tried.matrices))) == "model.layers.*.mlp.up_proj"


def size_of_png(path):
    """Width and height in pixels, from the header."""
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Three layers of 40 experts as modules and as a stack, and matrices of many other kinds."""
    tensors = {"model.layers.1.mlp.down_proj.1.weight": noise(1, 8, 8)}
    for layer in range(3):
        start = f"model.layers.{layer}.mlp.experts"
        for expert in range(40):
            scale = 1 + expert / 40
            tensors[f"{start}.{expert}.up_proj.weight"] = scale * noise(expert, 8, 8)
        tensors[f"{start}.down_proj.weight"] = torch.stack([noise(n, 8, 8) for n in range(40)])
    tensors |= {f"tower.{number}.fc{number}.weight": noise(number, 4, 8) for number in range(5)}
    folder = tmp_path_factory.mktemp("experts")
    save_file(tensors, folder / "model.safetensors")
    return survey_model(folder / "model.safetensors")


def test_experts_share_the_panel_of_their_kind_and_layer(experts):
    found = panels(experts.matrices)
    for kind in ("model.layers.*.mlp.experts.*.up_proj", "model.layers.*.mlp.experts.down_proj.*"):
        assert {number: len(rows) for number, rows in found[kind].items()} == dict.fromkeys(
            range(3), 40
        )
        for number, rows in found[kind].items():
            assert all(f"layers.{number}." in row.name for row in rows)
    assert "model.layers.*.mlp.down_proj.1" in found  # its second number is no layer's
    assert len(found) == 8


def test_a_picture_of_many_experts_and_kinds_stays_small(experts, tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "PANELS", 3)
    for path in draw_survey(tmp_path, experts):
        assert size_of_png(path) == (2475, 600)  # three panels in a row, of the eight kinds
    assert PANELS * 600 // 3 <= 5000


@pytest.mark.parametrize(("recipe", "same"), [({"reallm": 1}, True), ("rtn-4bit", False)])
def test_an_archive_is_looked_at_as_it_decodes(tiny_llama, tmp_path, recipe, same):
    archive = tmp_path / "model.reallm"
    reallm.compile(recipe, model=tiny_llama, output=archive, workers=1)
    ours, original = survey_model(archive), survey_model(tiny_llama)
    assert [row.name for row in ours.matrices] == [row.name for row in original.matrices]
    equal = [a == b for a, b in zip(ours.matrices, original.matrices, strict=True)]
    assert equal == [same] * len(equal)
    with pytest.raises(EvaluationError, match="a recipe is tried on a checkpoint"):
        survey_model(archive, recipes=["nf4"])
