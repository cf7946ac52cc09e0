"""Windows drawn at random: of documents long enough, always the same for a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate import evaluate_files
from reallm_compiler.evaluate.random_windows import cut_random


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


TEXT = "short<end>" + "<end>".join(f"{digit} " * 30 for digit in "123456789")


def test_each_window_lies_in_one_document(tokenizer):
    cut = cut_random(tokenizer, TEXT, 8, 50, separator="<end>")
    assert cut.protocol == "random windows"
    assert len(cut.sequences) == 50
    assert {len(ids) for ids in cut.sequences} == {8}
    seen = {frozenset(tokenizer.decode(ids).replace(" ", "")) for ids in cut.sequences}
    assert all(len(digits) == 1 for digits in seen)
    assert len(seen) > 5
    decoded = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in cut.sequences]
    assert cut.nbytes == sum(len(part.encode()) for part in decoded)


def test_a_seed_is_a_sample(tokenizer):
    draws = [cut_random(tokenizer, TEXT, 8, 20, separator="<end>", seed=s) for s in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_without_separator_the_text_is_one_document(tokenizer):
    text = "one two three four five six"
    ids = tokenizer(text)["input_ids"]
    cut = cut_random(tokenizer, text, len(ids), 3)
    assert cut.sequences == (tuple(ids),) * 3
    assert cut.nbytes == 3 * len(text)


@pytest.mark.parametrize(
    ("window", "count", "separator", "message"),
    [
        (1000, 2, "<end>", "no document of the text has 1000 tokens"),
        (1, 2, None, "predicts nothing"),
        (8, 0, None, "cannot draw 0 random windows"),
        (8, 2, "<nowhere>", "does not occur"),
    ],
    ids=["long", "window", "count", "separator"],
)
def test_what_cannot_be_drawn(tokenizer, window, count, separator, message):
    with pytest.raises(EvaluationError, match=message):
        cut_random(tokenizer, TEXT, window, count, separator=separator)


def test_it_is_a_protocol_of_eval(tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    found = [
        evaluate_files(tiny_llama, path, window=16, separator="<end>", random_windows=6, seed=seed)
        for seed in (3, 3)
    ]
    assert found[0] == found[1]
    assert found[0].protocol == "random windows"
    assert found[0].tokens == 6 * 15
