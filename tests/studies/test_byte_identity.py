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


@pytest.mark.slow
def test_every_shipped_recipe(run) -> None:
    code, out = run("--kills", "1")
    assert code == 0, out
