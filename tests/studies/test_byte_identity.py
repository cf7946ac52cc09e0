"""The study of byte identity: a difference is seen; and, at length, that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import byte_identity


@pytest.fixture
def run(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str]:
        words = ["byte_identity.py", "--model", str(tiny_llama), *arguments]
        monkeypatch.setattr("sys.argv", words)
        return byte_identity.main(), capsys.readouterr().out

    return call


def test_a_difference_is_seen(run, tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    answers = [([], {"a": "1", "b": "2"}), ([], {"a": "1", "b": "3"}), (["2 workers: a"], {})]
    monkeypatch.setattr(byte_identity, "study", lambda *_: answers.pop(0))
    kept = tmp_path / "kept.json"
    assert run("--recipe", "nf4", "--write", str(kept))[0] == 0
    code, out = run("--recipe", "nf4", "--compare", str(kept))
    assert code == 1
    assert "1 sections are not as before: b" in out
    code, out = run("--recipe", "nf4")
    assert code == 1
    assert "2 workers: a" in out


def test_a_recipe_that_learns_is_given_the_text(run, tmp_path: Path, monkeypatch) -> None:
    seen: list[byte_identity.Case] = []
    monkeypatch.setattr(byte_identity, "study", lambda case, *_: seen.append(case) or ([], {}))
    assert "left out: learns from a text" in run("--recipe", "apiq")[1]
    text = tmp_path / "text.txt"
    assert run("--recipe", "apiq", "--recipe", "nf4", "--text", str(text))[0] == 0
    assert [(case.recipe, case.text) for case in seen] == [("apiq", text), ("nf4", None)]


@pytest.mark.slow
def test_every_shipped_recipe(run) -> None:
    code, out = run("--kills", "1")
    assert code == 0, out
