"""The shipped recipes: complete, honest about their size, free of any model's names."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from reallm_compiler.checkpoint.attention import CachedLayer
from reallm_compiler.planning.kv_cache import cache_budget
from reallm_compiler.recipe import Candidate, list_shipped, load_recipe, read_shipped, resolve
from reallm_compiler.recipe import shipped as shipped_module
from reallm_compiler.recipe.shipped import (
    BEST,
    DATA_FREE,
    FIRST_CHOICE,
    head_comment,
    list_caches,
    list_choices,
)
from reallm_compiler.stages import AbsmaxScales, MatrixPlan, UniformQuantizer
from reallm_compiler.storage.matrix import layout_of
from reallm_compiler.units import bits_per_weight

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (4096, 4096)
PROMISED = {
    "reallm-2bit",
    "reallm-2.5bit",
    "reallm-3bit",
    "reallm-4bit",
    "paper-2bit",
    "paper-3bit",
    "reallm-2bit-data-free",
    "reallm-3bit-data-free",
    "reallm-4bit-data-free",
    "reallm-4.5bit-data-free",
    "reallm-5bit-data-free",
    "lq-lora",
    "qlora",
    "nf4",
    "nf3",
    "rtn-4bit",
    "rtn-2bit",
    "int4",
}
NAMES = list_shipped()
NOT_MEASURED = {"paper-hnerv"}
"""Days of training."""


def test_all_promised_recipes_are_there():
    assert set(NAMES) >= PROMISED
    assert {path.stem for path in (ROOT / "recipes").glob("*.*")} == set(NAMES)


@pytest.mark.parametrize("name", list_choices())
def test_a_recipe_to_choose_from_is_one(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.allocate is not None
    assert recipe.allocate.target is None  # the command says it
    counts = {"reallm-mixed": 23, "reallm-mixed-data-free": 15, "lq-lora-mixed": 432, "nf-mixed": 3}
    assert len(recipe.allocate.candidates) == counts[name]
    comment = head_comment(read_shipped(name))
    assert f"reallm allocate {name} --model PATH" in comment
    assert "Source:" in comment


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_meets_a_model(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert (recipe.model, recipe.output) == (None, None)
    (rule,) = recipe.rules
    assert [pattern.text for pattern in rule.match] == ["*"]  # no names of one family
    sizes = {"layers.0.q": 4096**2, "embed": 32_000 * 4096, "head": 32_000 * 4096}
    small = {"positions": 2048 * 4096, "score": 4096}  # below a hundredth of all
    roles = {"embed": "embedding", "positions": "embedding", "head": "head", "score": "head"}
    decisions = resolve(
        recipe,
        [
            Candidate(
                name=name,
                layer=None if name in roles else 0,
                is_matrix=True,
                coded_by_default=name not in roles,
                role=roles.get(name, "linear"),
                numel=weights * (40 if name not in roles else 1),
            )
            for name, weights in (sizes | small).items()
        ],
    )
    assert decisions["layers.0.q"].plan == recipe.plan
    coded = MatrixPlan(
        scales=AbsmaxScales(kind="absmax", per="row"),
        quantizer=UniformQuantizer(kind="uniform", bits=8),
    )
    for name in ("embed", "head"):
        plan = decisions[name].plan
        assert plan is not None
        scales = plan.scales.model_copy(update={"block": 64, "superblock": 256})  # of no account
        assert plan.model_copy(update={"scales": scales}) == coded
    assert {decisions[name].keep for name in small} == {"source"}


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_purpose_source_command_and_size(name):
    head = head_comment(read_shipped(name))
    purpose, rest = head.split("\n\n", 1)
    assert len(purpose) > 40
    assert re.search(r"^Source:  \S", rest, re.MULTILINE)
    assert re.search(r"^Run:     reallm \S", rest, re.MULTILINE)
    stats = ""
    if load_recipe(name).statistics == "required":
        stats = " --stats model.stats"
        assert " reallm calibrate PATH --text TEXT -o model.stats\n" in rest
    text = " --text TEXT" if load_recipe(name).fit is not None else ""
    assert f" reallm compile {name} --model PATH{stats}{text} -o model.reallm" in rest
    assert re.search(r"^Size:    exact bits \d", rest, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_its_head_has_the_right_numbers(name):
    head = head_comment(read_shipped(name))
    plan = load_recipe(name).plan
    stored = layout_of(plan, SHAPE, "bf16").sections
    own = sum(section.nbytes for section in stored if not section.shared)
    shared = sum(section.nbytes for section in stored if section.shared)
    exact = bits_per_weight(own, SHAPE[0] * SHAPE[1])
    assert f"exact bits {float(exact):.6f} at 4096 x 4096" in head
    if "paper bits" in head:
        assert f"(paper bits {float(layout_of(plan, SHAPE, 'bf16').paper_bits()):.6f})" in head
    if shared:
        assert f"and {shared} bytes once" in head


@pytest.mark.parametrize("name", list_caches())
def test_recipes_of_caches_are_of_nothing_else(name):
    recipe = load_recipe(name)
    assert recipe.kv_cache is not None
    assert load_recipe(recipe.document).kv_cache == recipe.kv_cache
    assert (recipe.plan, recipe.rules, recipe.statistics) == (MatrixPlan(), (), "none")
    assert name not in NAMES
    head = head_comment(read_shipped(name))
    rest = head.split("\n\n", 1)[1]
    assert re.search(r"^Source:  \S", rest, re.MULTILINE)
    assert f"--kv-cache {name}" in rest
    layer = CachedLayer(heads=8, keys=128, values=128)
    token = cache_budget(recipe.kv_cache, [layer], 1, 2).token
    bits = 8 * token / (8 * 256)
    assert f"Size:    {float(bits):.4f} bits a number" in rest


def test_the_two_bits_of_the_paper_add_up():
    stored = layout_of(load_recipe("paper-2bit").plan, SHAPE, "bf16").sections
    terms: dict[str, Fraction] = {}
    for section in stored:
        bits = bits_per_weight(section.nbytes, SHAPE[0] * SHAPE[1])
        terms[section.term] = terms.get(section.term, Fraction(0)) + bits
    assert terms == {
        "codes": 2,
        "scales": Fraction(8, 64) + Fraction(32, 64 * 256) + Fraction(32, 4096**2),
        "permutation": Fraction(12, 128),
        "low_rank": Fraction(1, 2),
        "dora": Fraction(16, 4096),
        "codebook": Fraction(8 * 4 * 256 + 32, 4096**2),
    }


def test_the_package_comes_before_the_repository(tmp_path, monkeypatch):
    packaged = tmp_path / "_recipes"
    packaged.mkdir()
    (packaged / "mine.yaml").write_text("# Mine.\nreallm: 1\nseed: 8\n")
    monkeypatch.setattr(shipped_module, "_FOLDERS", (packaged, ROOT / "recipes"))
    assert list_shipped() == ["mine"]
    assert load_recipe("mine").seed == 8
    assert head_comment(read_shipped("mine")) == "Mine."


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        read_shipped("../recipes/nf4")


def measured() -> dict[str, tuple[float, str]]:
    """Exact bits and KL of each recipe on the largest model of docs/results.md, or else, for
    methods of others, of docs/methods.md.
    """
    found: dict[str, tuple[float, str]] = {}
    for page, head, row in (
        ("methods", "## Measured on gutenberg-11m\n", r"\d+ \| ([\d.]+) \|(?:[^|]*\|){2}"),
        ("results", "## gutenberg-11m\n", r"([\d.]+) \|(?:[^|]*\|){5}"),
    ):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        table = text.partition(head)[2].split("\n## ")[0].split("\n### ")[0]
        rows = re.findall(rf"^\| `(\S+)` \| {row} ([\d.]+) \|", table, re.MULTILINE)
        found |= {name: (float(bits), kl) for name, bits, kl in rows}
    return found


def test_the_heads_say_what_was_measured():
    found = measured()
    assert set(found) == set(NAMES) - NOT_MEASURED
    for name, (_, kl) in found.items():
        assert f"\nQuality: KL {kl} nats, perplexity +" in head_comment(read_shipped(name))


def test_the_best_recipes_are_the_best():
    found = measured()
    assert FIRST_CHOICE in BEST
    free = {name for name in found if load_recipe(name).statistics == "none"}
    assert not free & set(BEST)
    best = [name for name in BEST if name in found]
    for names, rivals in ((best, set(found)), (DATA_FREE, free)):
        for name in names:
            bits, kl = found[name]
            for other in rivals - {name}:
                least, loss = found[other]
                assert least > bits or float(loss) > float(kl), (name, other)
        assert [found[name][0] for name in names] == sorted(found[name][0] for name in names)
