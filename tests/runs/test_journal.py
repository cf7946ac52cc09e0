"""The journal: records survive, torn lines do not, and two holders never meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.errors import OutputError
from reallm_compiler.runs.journal import Journal

RECORDS = [{"identity": {"a": 1}}, {"task": "x", "errors": {"x": 0.1}}, {"task": "ü\n"}]


def written(path: Path) -> bytes:
    with Journal.open(path) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


def test_records_come_back(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with Journal.open(tmp_path / "j") as journal:
        assert journal.records == RECORDS


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 200), noise=st.binary(max_size=20))
def test_a_torn_end_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    whole = written(path)
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut] + noise)
    with Journal.open(path) as journal:
        found = list(journal.records)
        assert found == RECORDS[: len(found)]
        assert len(found) >= whole[:cut].count(b"\n") - (1 if noise else 0)
        journal.append({"task": "next"})
    with Journal.open(path) as journal:
        assert journal.records == [*found, {"task": "next"}]


def test_one_flipped_bit_ends_the_good_part(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = bytearray(written(path))
    second = data.index(b"\n") + 12
    data[second] ^= 1
    path.write_bytes(data)
    with Journal.open(path) as journal:
        assert journal.records == RECORDS[:1]


def test_the_second_holder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.reallm.journal"
    with Journal.open(path), pytest.raises(OutputError, match="another run"):
        Journal.open(path)
    Journal.open(path).close()


def test_a_removed_journal_is_not_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal.open(path) as journal:
        journal.remove()
        Journal.open(path).close()
