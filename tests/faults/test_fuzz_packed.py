"""A draw of forged packed matrices; tests/faults/fuzz_packed.py runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import fuzz_packed as fuzzer


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "BASES", 8)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernels"])
def test_forged_matrices(tmp_path: Path, plain: bool) -> None:
    outcome = fuzzer.fuzz(300, 1, tmp_path, plain=plain)
    assert outcome.findings == []
    assert 40 <= outcome.intact <= 200, "mutants must reach what lies behind the check, and not all"
    assert min(outcome.counts[rule] for rule in ("P1", "P4")) >= 20


@pytest.mark.slow
def test_many_forged_matrices(tmp_path: Path) -> None:
    assert fuzzer.fuzz(10_000, 10_000, tmp_path).findings == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("says", "found"),
    [
        (lambda *_: 1 // 0, "ZeroDivisionError"),
        (lambda sections, form: (sections[0].view(-1)[0:1].zero_(), (0, 1))[1], "AssertionError"),
    ],
    ids=["a bug", "a shape"],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch, says, found) -> None:
    monkeypatch.setattr(fuzzer, "_run", says)
    assert found in fuzzer.fuzz(1, 3, tmp_path).findings[0]


@pytest.mark.usefixtures("few")
def test_it_sees_what_is_written_beside_a_section(tmp_path: Path, monkeypatch) -> None:
    seed = next(number for number in range(100) if not fuzzer.mutant(number)[3])

    def beside(sections, form):
        sections[0].untyped_storage()[0] = 0
        return 1, 1

    monkeypatch.setattr(fuzzer, "_run", beside)
    assert "AssertionError" in fuzzer.fuzz(1, seed, tmp_path).findings[0]
