"""The JSON Schema: written, current, and of one mind with the checks of the compiler.

The validator below knows the few words of JSON Schema that our schema uses, and refuses any other.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe import (
    Candidate,
    json_schema,
    list_shipped,
    load_recipe,
    read_shipped,
    resolve,
)
from reallm_compiler.recipe.document import read_text
from reallm_compiler.recipe.nodes import to_plain
from reallm_compiler.recipe.shipped import list_choices
from reallm_compiler.recipe.vocabulary import keys_of, stages

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json_schema()
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
IGNORED = {"$schema", "$defs", "title", "description", "default"}


def accepts(schema, value, words=None) -> bool:
    """Whether `value` fits `schema`."""
    rules = {key: rule for key, rule in schema.items() if key not in IGNORED}
    known = {
        "$ref": lambda rule: accepts(SCHEMA["$defs"][rule.removeprefix("#/$defs/")], value),
        "type": lambda rule: is_a(value, rule),
        "const": lambda rule: value == rule and type(value) is type(rule),
        "enum": lambda rule: value in rule,
        "anyOf": lambda rule: any(accepts(option, value) for option in rule),
        "oneOf": lambda rule: sum(accepts(option, value) for option in rule) == 1,
        "not": lambda rule: not accepts(rule, value),
        "if": lambda rule: not accepts(rule, value) or accepts(schema["then"], value),
        "then": lambda _: True,
        "required": lambda rule: not isinstance(value, dict) or set(rule) <= set(value),
        "properties": lambda rule: (
            not isinstance(value, dict)
            or all(accepts(rule[key], value[key]) for key in rule if key in value)
        ),
        "additionalProperties": lambda rule: (
            not isinstance(value, dict)
            or all(
                rule is True or (rule is not False and accepts(rule, value[key]))
                for key in value
                if key not in schema.get("properties", {})
            )
        ),
        "propertyNames": lambda rule: (
            not isinstance(value, dict) or all(accepts(rule, key) for key in value)
        ),
        "items": lambda rule: (
            not isinstance(value, list)
            or all(accepts(rule, item) for item in value[len(schema.get("prefixItems", [])) :])
        ),
        "prefixItems": lambda rule: (
            not isinstance(value, list)
            or all(accepts(one, item) for one, item in zip(rule, value, strict=False))
        ),
        "minItems": lambda rule: not isinstance(value, list) or len(value) >= rule,
        "maxItems": lambda rule: not isinstance(value, list) or len(value) <= rule,
        "minLength": lambda rule: not isinstance(value, str) or len(value) >= rule,
        "minProperties": lambda rule: not isinstance(value, dict) or len(value) >= rule,
        "minimum": lambda rule: not is_a(value, "number") or value >= rule,
        "maximum": lambda rule: not is_a(value, "number") or value <= rule,
        "exclusiveMaximum": lambda rule: not is_a(value, "number") or value < rule,
        "exclusiveMinimum": lambda rule: not is_a(value, "number") or value > rule,
    }
    assert set(rules) <= set(known)
    return all(known[key](rule) for key, rule in rules.items())


def is_a(value, name) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean") == isinstance(value, bool)


def data(text: str):
    return to_plain(read_text(text, "r.yaml")[0])


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("recipe_reference", DOCS / "recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_current(reference):
    for path, text in reference.generated().items():
        stale = f"{path.name} is out of date; run: python docs/recipe_reference.py --write"
        assert path.read_text(encoding="utf-8") == text, stale


def test_every_stage_has_its_location_in_the_page():
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    tuning = (DOCS / "finetune.md").read_text(encoding="utf-8")
    for name in ("finetune", "block", "e2e"):
        assert tuning.count(f"<!-- generated: {name} -->") == 1
    for name in (*stages(), "plan", "rule", "recipe"):
        assert page.count(f"<!-- generated: {name} -->") == 1
    for stage, kinds in stages().items():
        for kind, model in kinds.items():
            assert f"**`{kind}`**" in page, stage
            assert all(f"| `{key}` |" in page for key in keys_of(model) if key != "kind")


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (DOCS / "recipe.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_work(number, tmp_path):
    assert len(EXAMPLES) >= 3
    path = tmp_path / "r.yaml"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    candidates = [
        Candidate(name=f"model.layers.{n}.{part}", layer=n, is_matrix=True, coded_by_default=True)
        for n in range(32)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    candidates += [
        Candidate(name=name, layer=None, is_matrix=True, coded_by_default=False, role=role, numel=9)
        for name, role in (("model.embed_tokens", "embedding"), ("lm_head", "head"))
    ]
    assert resolve(load_recipe(path), candidates)
    assert accepts(SCHEMA, data(EXAMPLES[number]))


def test_the_messages_of_the_page_are_real(tmp_path, monkeypatch):
    """The page shows three slips; this is the file that has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "reallm: 1\n"
        "extends: nf4\n"
        "defualts:\n"
        "  dora: true\n"
        "\n"
        "rules:\n"
        '  - match: "*.down_proj"\n'
        "    set:\n"
        "      quantizer: {kind: uniform, bits: 20, dim: 4}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.yaml")
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    for line in str(caught.value).splitlines():
        assert f"\n    {line}\n" in page


@pytest.mark.parametrize("name", [*list_shipped(), *list_choices()])
def test_shipped_recipes_fit(name):
    assert accepts(SCHEMA, data(read_shipped(name)))
    assert accepts(SCHEMA, load_recipe(name).document)


FITS = [
    "{reallm: 1, extends: nf4, allocate: {bytes: 3.2GB, candidates: [nf2, {dora: true}, {}]}}",
    "{reallm: 1, extends: nf4, allocate: {bits: 5/2, scope: file, candidates: [nf3], lock: a}}",
    "{reallm: 1, extends: nf4, allocate: {candidates: [{quantizer: {bits: [2, 3]}}]}}",
    "{reallm: 1, extends: nf4, allocate: {candidates: [{role: head, set: {dora: [true]}}]}}",
    "{reallm: 1, extends: nf4, allocate: {candidates: [nf2], groups: [[q_proj, k_proj]]}}",
    "reallm: 1",
    "{reallm: 1, seed: 7, model: m, output: o}",
    "{reallm: 1, model: {shapes: {a: [1, 2]}}}",
    "{reallm: 1, defaults: {residual: {kind: low_rank, rank: 1/64}}}",
    "{reallm: 1, defaults: {residual: {kind: low_rank, rank: 0.5}}}",
    "{reallm: 1, defaults: {quantizer: {kind: vq, bits: 2, dim: 4}, dora: true, share: g}}",
    "{reallm: 1, extends: paper-2bit, defaults: {quantizer: {bits: 1}}}",
    "{reallm: 1, rules: [{match: a, set: {quantizer: {kind: vq, bits: 2, dim: 4}}}]}",
    "{reallm: 1, rules: [{match: [a, 're:b'], except: c, layers: 0-3, keep: bf16}]}",
    "{reallm: 1, rules: [{match: a, layers: [0, -4..], keep: source, optional: true, note: n}]}",
    "{reallm: 1, rules: [{match: a, set: {scales: {kind: rms, bits: null}}}]}",
    "{reallm: 1, finetune: {}}",
    "{reallm: 1, finetune: {stages: [e2e], window: null, e2e: {lr: 1, betas: [0.9, 0]}}}",
]
DOES_NOT = [
    "{reallm: 1, allocate: {candidates: [{quantizer: {bit: [2, 3]}}]}}",
    "{reallm: 1, allocate: {candidates: [{match: a, keep: source}]}}",
    "{reallm: 1, allocate: {candidates: nf2}}",
    "{reallm: 1, allocate: {candidates: [nf2], groups: [[q_proj]]}}",
    "{reallm: 1, allocate: {candidates: [nf2], scope: files}}",
    "reallm: 2",
    "{}",
    "{reallm: true}",
    "{reallm: 1, sed: 1}",
    "{reallm: 1, seed: -1}",
    "{reallm: 1, seed: true}",
    "{reallm: 1, defaults: {residual: {kind: low_rank}}}",
    "{reallm: 1, defaults: {residual: {kind: lowrank, rank: 1}}}",
    "{reallm: 1, defaults: {quantizer: {kind: uniform, bits: 9}}}",
    "{reallm: 1, defaults: {quantizer: {kind: uniform, bits: 2, dim: 4}}}",
    "{reallm: 1, defaults: {dora: yes}}",
    "{reallm: 1, defaults: {rank: 1}}",
    "{reallm: 1, rules: [{match: a}]}",
    "{reallm: 1, rules: [{keep: source}]}",
    "{reallm: 1, rules: [{match: a, set: {}, keep: source}]}",
    "{reallm: 1, rules: [{match: [], keep: source}]}",
    "{reallm: 1, rules: [{match: a, keep: fp8}]}",
    "{reallm: 1, rules: [{match: a, set: {scales: {kind: maxabs}}}]}",
    "{reallm: 1, rules: [{match: a, set: {scales: {blok: 1}}}]}",
    "{reallm: 1, finetune: {lr: 1e-3}}",
    "{reallm: 1, finetune: {stages: e2e}}",
    "{reallm: 1, finetune: {block: {warmup: 1}}}",
    "{reallm: 1, finetune: {e2e: {betas: [0.9]}}}",
    "{reallm: 1, finetune: {e2e: {betas: [0.9, 1]}}}",
    "{reallm: 1, finetune: {block: {betas: [-0.1, 0.9]}}}",
    "{reallm: 1, finetune: {e2e: {betas: [0.9, 0.9, 0.9]}}}",
]


@pytest.mark.parametrize("text", FITS)
def test_what_fits_the_schema_is_a_recipe(text):
    assert accepts(SCHEMA, data(text))
    assert load_recipe(data(text))


@pytest.mark.parametrize("text", DOES_NOT)
def test_what_does_not_fit_is_none(text):
    assert not accepts(SCHEMA, data(text))
    with pytest.raises(RecipeError):
        load_recipe(data(text))


def test_the_schema_is_plain_json_without_noise():
    text = json.dumps(SCHEMA)
    assert json.loads(text) == SCHEMA
    assert "discriminator" not in text
    assert SCHEMA["title"] == "reallm recipe"
    assert text.count('"title"') == 1
