"""A draw of forged statistics through every command; fuzz_statistics.py runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import fuzz_statistics as fuzzer
from tests.faults import watched


def test_forged_statistics(tmp_path: Path) -> None:
    outcome = fuzzer.fuzz(30, 1, tmp_path)
    assert outcome.findings == []
    assert 4 <= outcome.intact <= 26, "mutants must reach what lies behind verify, and not all"
    assert outcome.counts["compile: 0"] >= 3, "no compile takes any statistics"
    assert outcome.counts["compile: 14"] >= 1, "none is refused by name"


@pytest.mark.faults
def test_many_forged_statistics(tmp_path: Path) -> None:
    assert fuzzer.fuzz(1000, 10_000, tmp_path).findings == []


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "command_line", lambda argv: 1 // 0)
    outcome = fuzzer.fuzz(1, 0, tmp_path)
    assert "verify: ZeroDivisionError" in outcome.findings[0]
