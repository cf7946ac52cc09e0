"""A draw of benchmarks/calibrate.py: the peak of memory is held against what is stated."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import calibrate

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    words = ["calibrate.py", str(ROOT / "demo/model"), "--text", str(ROOT / "demo/heldout.txt")]
    least = ["--samples", "2", "--window", "32", "--wide", "128", "--layers", "1"]
    monkeypatch.setattr(sys, "argv", [*words, *least, *more])
    with pytest.raises(SystemExit) as ended:
        calibrate.main()
    return int(ended.value.code or 0)


def test_the_peak_is_below_what_is_stated(monkeypatch, capfd) -> None:
    monkeypatch.setattr(calibrate, "anonymous_bytes", lambda _: 300 * calibrate.MB)
    assert run(monkeypatch) == 0
    said = re.search(r"([\d,]+) MB stated .* ([\d,]+) MB at the peak", capfd.readouterr().out)
    assert said is not None
    assert said[2] == "300"
    assert int(said[1]) > 550  # an interpreter with torch, and a reserve


@pytest.mark.slow
def test_a_peak_above_what_is_stated_ends_with_1(monkeypatch) -> None:
    monkeypatch.setattr(calibrate, "anonymous_bytes", lambda _: 10**12)
    assert run(monkeypatch) == 1
