"""Rows that studies keep: taken again for the same inputs, and for no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies.pages import digest_of, keep_row, read_rows
from studies.results import Subject

MODEL = {"model": "tiny", "text": "0f"}


def test_a_row_is_taken_again_for_its_inputs_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    keep_row({"kl": 1.0}, MODEL, path)
    keep_row({"kl": 2.0}, {**MODEL, "statistics": "aa"}, path)
    assert read_rows(path, MODEL) == [{"kl": 1.0}, {"kl": 2.0}]
    assert read_rows(path, {**MODEL, "statistics": "aa"}) == [{"kl": 1.0}, {"kl": 2.0}]
    assert read_rows(path, {**MODEL, "statistics": "bb"}) == [{"kl": 1.0}]
    assert read_rows(path, {**MODEL, "text": "1f"}) == []
    assert read_rows(path, {**MODEL, "model": "other"}) == []
    with path.open("a") as file:
        file.write('{"kl": 3.0}\n')
    assert read_rows(path, MODEL) == [{"kl": 1.0}, {"kl": 2.0}]


def test_half_a_row_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    keep_row({"kl": 1.0}, MODEL, path)
    path.write_bytes(path.read_bytes() + b'{"kl": 2.')
    assert read_rows(path, MODEL) == [{"kl": 1.0}]
    keep_row({"kl": 3.0}, MODEL, path)
    assert [json.loads(line)["kl"] for line in path.read_text().splitlines()] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([], True),
        (["bytes=5"], False),
        (["window=7"], False),
        (["separator=<s>"], False),
    ],
)
def test_inputs_are_those_of_the_evaluation(words: list[str], same: bool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("once upon a time")
    given = ["tiny", str(tmp_path), str(text)]
    first = Subject.parse([*given, "window=8"]).inputs
    assert (Subject.parse([*given, "window=8", *words]).inputs == first) == same


def test_statistics_and_texts_to_learn_from_are_inputs(tmp_path: Path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("once")
    other.write_text("upon")
    given = ["tiny", str(tmp_path), str(text)]
    found = [
        Subject.parse([*given, f"stats={stats}", f"calibrate={learned}"]).inputs
        for stats in (text, other)
        for learned in (text, other)
    ]
    assert len({tuple(sorted(one.items())) for one in found}) == 4
    assert digest_of(text) != digest_of(other)
