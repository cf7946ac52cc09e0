"""Sections that are given out before they are checked: damage is raised at the next call."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from reallm_formats import Archive, FormatError, Writer, damage, layout

ROWS = [(f"file:part-{number}", "u8", (1000 + number,)) for number in range(4)]
DOCUMENT = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}


@pytest.fixture
def path(tmp_path):
    plan = layout(kind="model", document=DOCUMENT, sections=ROWS)
    path = tmp_path / "archive"
    with Writer.create(path, plan) as out:
        digests = {
            name: out.write(name, bytes([number]) * section.nbytes)
            for number, (name, section) in enumerate(plan.sections.items())
        }
        out.finish(DOCUMENT, digests)
    return path


def flip_bits(path, *names):
    with Archive.open(path) as archive:
        offsets = [archive.sections[name].offset for name in names]
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset + 7] ^= 1
    path.write_bytes(data)


@pytest.fixture
def gate(monkeypatch):
    """Checks wait until the gate is set; the thread they run in is noted."""
    gate: Any = threading.Event()
    checked = []
    gate.threads = checked

    def waiting(section, view, progress=None):
        assert gate.wait(30)
        checked.append(threading.current_thread())
        return original(section, view, progress)

    original = damage.damage_of
    monkeypatch.setattr(damage, "damage_of", waiting)
    yield gate
    gate.set()


def test_bytes_come_before_their_check(path, gate):
    with Archive.open(path, verify="later") as archive:
        for number, (name, _, (size,)) in enumerate(ROWS):
            assert bytes(archive.read(name)) == bytes([number]) * size
        assert gate.threads == []
        gate.set()
        archive.check()
        assert len(gate.threads) == len(ROWS)
        assert threading.main_thread() not in gate.threads
        for name, _, _ in ROWS:
            archive.read(name)
    assert len(gate.threads) == len(ROWS), "a section is checked once"


def test_damage_is_raised_by_the_next_call_and_by_all_after_it(path, gate):
    flip_bits(path, "file:part-1")
    with Archive.open(path, verify="later") as archive:
        assert len(archive.read("file:part-1")) == 1001
        gate.set()
        archive._later.finish()
        for call in (lambda: archive.read("file:part-0"), archive.check):
            with pytest.raises(FormatError, match="damaged") as caught:
                call()
            assert caught.value.rule == "S9"
            assert "section file:part-1" in caught.value.location
            assert caught.value.location.startswith(str(path))
            assert "given out before" in caught.value.note


def test_damage_that_nobody_knows_of_is_raised_on_closing(path, gate):
    flip_bits(path, "file:part-1", "file:part-3")
    archive = Archive.open(path, verify="later")
    for name, _, _ in ROWS:
        archive.read(name)
    gate.set()
    with pytest.raises(FormatError, match="damaged") as caught:
        archive.close()
    assert "part-1" in caught.value.location
    assert "1 more sections" in caught.value.note
    archive.close()
    with pytest.raises(ValueError, match="closed"):
        archive.read("file:part-0")


def test_closing_waits_for_the_checks(path, gate):
    flip_bits(path, "file:part-2")
    archive = Archive.open(path, verify="later")
    archive.read("file:part-2")
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(FormatError, match="damaged"):
        archive.close()


def test_what_was_not_read_is_not_checked(path):
    flip_bits(path, "file:part-2")
    with Archive.open(path, verify="later") as archive:
        archive.read("file:part-0")
        archive.check()
        archive.read("file:part-1")
    with Archive.open(path, verify="later") as archive:
        assert [found.rule for found in archive.verify()] == ["S9"]


def test_whether_checks_are_still_to_be_made(path, gate):
    flip_bits(path, "file:part-3")
    with Archive.open(path, verify="later") as archive:
        assert not archive.checking
        archive.read("file:part-0")
        assert archive.checking
        gate.set()
        archive.check()
        assert not archive.checking
        archive.read("file:part-3")
        archive._later.finish()
        with pytest.raises(FormatError, match="damaged"):
            _ = archive.checking
    with Archive.open(path) as archive:
        archive.read("file:part-0")
        assert not archive.checking


def test_nothing_waits_where_nothing_was_put_off(path):
    with Archive.open(path) as archive:
        archive.read("file:part-0")
        archive.check()


@pytest.mark.parametrize("verify", ["Later", "", None, True])
def test_there_are_two_times(path, verify):
    with pytest.raises(ValueError, match="`now` or `later`"):
        Archive.open(path, verify=verify)
