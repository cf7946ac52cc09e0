"""A draw of forged archives through every command; tests/faults/fuzz_archive.py runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import fuzz_archive as fuzzer


def test_forged_archives(tmp_path: Path) -> None:
    outcome = fuzzer.fuzz(30, 1, tmp_path)
    assert outcome.findings == []
    assert 4 <= outcome.intact <= 26, "mutants must reach what lies behind verify, and not all"
    assert outcome.counts["load: 0"] >= 1, "no model is ever loaded"


@pytest.mark.faults
def test_many_forged_archives(tmp_path: Path) -> None:
    assert fuzzer.fuzz(2000, 10_000, tmp_path).findings == []


def test_whatever_was_changed_before_something_else_can_be() -> None:
    for seed in (507192, 508645, *range(100)):
        fuzzer.mutant(seed)


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (lambda args: 1 // 0, "verify: ZeroDivisionError"),
        (lambda args: print("\x1b[2J") or 0, "a control character is shown"),
        (lambda args: 5, "nothing was changed, and verify refuses it"),
    ],
    ids=["a bug", "an escape", "a refusal"],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch, says, found) -> None:
    monkeypatch.setattr(fuzzer, "command_line", says)
    seed = next(number for number in range(100) if not fuzzer.mutant(number)[1])
    assert any(found in finding for finding in fuzzer.fuzz(1, seed, tmp_path).findings)
