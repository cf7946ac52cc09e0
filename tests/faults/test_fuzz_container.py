"""Many damaged and hostile archives; a draw of them is in tests/formats/test_hostile.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import fuzz_container


@pytest.mark.faults
def test_many_mutants(tmp_path: Path) -> None:
    outcome = fuzz_container.fuzz(100_000, 2, tmp_path)
    assert outcome.findings == []
    assert outcome.intact + outcome.counts.total() == 100_000
