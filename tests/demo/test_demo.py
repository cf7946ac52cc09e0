"""The bundled model: reproducible text, the promised architecture, and some sense in its words."""

import importlib
import re
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "model"


def tool(name):
    """Import a script of demo/, which is a folder of programs and not a package."""
    sys.path.insert(0, str(DEMO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DEMO))


@pytest.fixture(scope="module")
def generate():
    return tool("generate")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def heldout():
    return (DEMO / "heldout.txt").read_bytes().decode("ascii")


def perplexity(model, ids):
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss.exp())


def test_equal_seeds_give_equal_stories_and_different_seeds_do_not(generate):
    first = list(islice(generate.stories(5), 20))
    assert first == list(islice(generate.stories(5), 20))
    assert not set(first) & set(islice(generate.stories(6), 20))


def test_text_is_made_of_whole_stories_within_the_limit(generate):
    text = generate.text(5, 10_000)
    assert 8_000 < len(text.encode("utf-8")) <= 10_000
    assert text.endswith("\n\n")
    assert text.split("\n\n")[:-1] == list(islice(generate.stories(5), text.count("\n\n")))


def test_sums_in_the_stories_are_right(generate):
    words = re.sub(r'[".,]', " ", generate.text(7, 1_500_000)).split()
    sums = [words[i - 3 : i + 2] for i, word in enumerate(words) if word == "="]
    assert len(sums) > 100
    for left, sign, right, _, result in sums:
        assert int(left) + int(right) * (1 if sign == "+" else -1) == int(result)


def test_command_line_writes_the_same_text(generate, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out.txt"
    monkeypatch.setattr(
        sys, "argv", ["generate", "--seed", "9", "--bytes", "5000", "-o", str(target)]
    )
    generate.main()
    assert target.read_bytes() == generate.text(9, 5000).encode("ascii")
    monkeypatch.setattr(sys, "argv", ["generate", "--seed", "9", "--bytes", "5000"])
    generate.main()
    assert capsys.readouterr().out == generate.text(9, 5000)


def test_heldout_text_is_what_the_documented_command_makes(generate, heldout):
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "python demo/generate.py --seed 2 --bytes 80000" in readme
    assert generate.text(2, 80_000) == heldout


def test_heldout_stories_are_not_among_the_training_stories(generate, heldout):
    training = set(islice(generate.stories(1), 5000))
    assert not training & set(heldout.strip().split("\n\n"))


def test_checkpoint_is_a_small_tied_grouped_query_llama_in_bf16(model):
    config = model.config
    assert config.model_type == "llama"
    assert config.tie_word_embeddings
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.intermediate_size % 32 != 0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
    with safe_open(MODEL / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_artefacts_stay_small():
    shipped = [*MODEL.iterdir(), DEMO / "heldout.txt"]
    assert sum(path.stat().st_size for path in shipped) < 6_000_000


def test_tokenizer_restores_the_text_and_adds_a_start_token(tokenizer, heldout):
    ids = tokenizer(heldout, verbose=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == heldout
    assert len(heldout) / len(ids) > 3
    odd = "Smörgås, naïve 東京 \t 🙂"
    assert tokenizer.decode(tokenizer(odd)["input_ids"], skip_special_tokens=True) == odd


def test_model_predicts_heldout_text_and_naive_rounding_ruins_it(tokenizer, model, heldout):
    ids = torch.tensor(tokenizer(heldout[:4000], verbose=False)["input_ids"][:512]).view(1, 512)
    before = perplexity(model, ids)
    assert before < 1.9
    rounded = tool("measure").rounded(model, output_too=True)
    assert perplexity(rounded, ids) > 2 * before


def test_rounding_keeps_to_four_levels_and_the_last_short_block():
    weight = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    rounded = tool("measure").round_to_grid(weight)
    for part, source in zip(rounded.split(64, dim=1), weight.split(64, dim=1), strict=True):
        for row, old in zip(part, source, strict=True):
            peak = old.abs().max()
            assert (row - old).abs().max() <= peak / 3 + 1e-6
            assert {round(float(x / peak) * 3) for x in row} <= {-3, -1, 1, 3}


def test_greedy_generation_keeps_to_the_facts(tokenizer, model):
    world = tool("world")
    right = 0
    people = list(world.PEOPLE.values())[:4]
    for person in people:
        prompt = f"This is a story about {person.name}, the"
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1)
        right += f"the {person.job}." in tokenizer.decode(out[0])
    assert right >= 3


def test_a_story_comes_to_an_end(tokenizer, model, generate):
    story = next(generate.stories(2))
    ids = tokenizer(story, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
    assert new[0] == tokenizer.eos_token_id or tokenizer.decode(new).startswith("\n\n")
