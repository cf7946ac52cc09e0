"""Sections in parcels: whole, in order, of a bounded size, and as they were sent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from reallm_compiler.errors import CompileError
from reallm_compiler.runs import parcels
from reallm_compiler.runs.parcels import Arrivals, Parcel, ParcelSink, ReservedFile
from reallm_compiler.runs.tasks import TaskResult
from reallm_formats import Writer, layout

DOCUMENT = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}
DATA = {"tensor:a": bytes(range(100)), "tensor:b": b"b" * 33, "tensor:c": b""}


@pytest.fixture(autouse=True)
def small_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PARCEL_BYTES", 40)


def sent() -> tuple[list[Parcel], TaskResult]:
    """The sections of a task on their way, each given in parts of 30 bytes."""
    found: list[Parcel] = []
    sink = ParcelSink(found.append, lambda name: DATA[name])
    result = TaskResult(task="t")
    for name, data in DATA.items():
        parts = (memoryview(data)[first : first + 30] for first in range(0, len(data), 30))
        result.sections[name] = sink.write(name, parts).hex()
    sink.flush()
    assert sink.read("tensor:b") == DATA["tensor:b"]
    return found, result


def test_parcels_are_bounded_and_hold_everything_in_order() -> None:
    found, result = sent()
    assert all(sum(len(data) for _, data in parcel.parts) <= 40 for parcel in found)
    whole = dict.fromkeys(DATA, b"")
    for parcel in found:
        for name, data in parcel.parts:
            whole[name] += data
    assert whole == DATA
    assert result.sections == {n: hashlib.sha256(d).hexdigest() for n, d in DATA.items()}


@pytest.fixture
def output(tmp_path: Path) -> ReservedFile:
    sections = [(name, "u8", (len(data),)) for name, data in DATA.items()]
    placed = layout(kind="model", document=DOCUMENT, sections=sections)
    Writer.create(tmp_path / "o", placed).close()
    return ReservedFile(tmp_path / "o", placed)


def test_two_attempts_at_once_write_what_one_would(output: ReservedFile) -> None:
    found, result = sent()
    with output.open() as sink:
        lost, kept = Arrivals(sink), Arrivals(sink)
        for parcel in found:
            kept.add(parcel)
            if parcel is not found[-1]:
                lost.add(parcel)
        kept.finish(result)
        assert {name: sink.read(name) for name in DATA} == DATA


def test_a_section_that_is_not_as_it_was_sent_is_refused(output: ReservedFile) -> None:
    found, result = sent()
    broken = Parcel(tuple((n, d.replace(b"bbb", b"bab")) for n, d in found[-1].parts))
    for parcels_of in ([*found[:-1], broken], []):
        with output.open() as sink:
            arrivals = Arrivals(sink)
            for parcel in parcels_of:
                arrivals.add(parcel)
            with pytest.raises(CompileError, match="not as its worker has sent it"):
                arrivals.finish(result)
