"""A draw of forged archives through every command; tests/faults/fuzz_archive.py runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import fuzz_archive as fuzzer
from tests.faults import watched


def test_forged_archives(tmp_path: Path) -> None:
    outcome = fuzzer.fuzz(20, 1, tmp_path)
    assert outcome.findings == []
    assert 3 <= outcome.intact <= 17, "mutants must reach what lies behind verify, and not all"
    assert outcome.counts["load: 0"] >= 1, "no model is ever loaded"


@pytest.mark.faults
def test_many_forged_archives(tmp_path: Path) -> None:
    assert fuzzer.fuzz(2000, 10_000, tmp_path).findings == []


def test_whatever_was_changed_before_something_else_can_be() -> None:
    for seed in (507192, 508645, *range(100, 130)):  # others than above
        fuzzer.mutant(seed)


@pytest.fixture(scope="module")
def unchanged() -> int:
    """The seed of an archive in which nothing is changed."""
    return next(number for number in range(100) if not fuzzer.mutant(number)[1])


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (lambda args: 1 // 0, "verify: ZeroDivisionError"),
        (lambda args: print("\x1b[2J") or 0, "a control character is shown"),
        (lambda args: 5, "nothing was changed, and verify refuses it"),
    ],
    ids=["a bug", "an escape", "a refusal"],
)
def test_the_fuzzer_sees_what_it_looks_for(
    unchanged: int, tmp_path: Path, monkeypatch, says, found
) -> None:
    monkeypatch.setattr(watched, "command_line", says)
    assert any(found in finding for finding in fuzzer.fuzz(1, unchanged, tmp_path).findings)
