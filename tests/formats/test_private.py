"""Bytes that may be written to: for one archive alone, and never into its file."""

from __future__ import annotations

import mmap
import sys

import pytest

from reallm_formats import Archive, Writer, layout

NAME = "file:part"
DOCUMENT = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}


@pytest.fixture
def path(tmp_path):
    plan = layout(kind="model", document=DOCUMENT, sections=[(NAME, "u8", (5000,))])
    path = tmp_path / "archive"
    with Writer.create(path, plan) as out:
        out.finish(DOCUMENT, {NAME: out.write(NAME, bytes(5000))})
    return path


NORESERVE = 0x4000
"""Linux's flag, which Python's `mmap` names from some version on."""


@pytest.mark.parametrize("reserves", [False, True])
def test_what_is_written_stays_in_this_archive(path, monkeypatch, reserves):
    if reserves:  # memory of a private map is reserved where nothing else can be said
        monkeypatch.delattr(mmap, "MAP_NORESERVE", raising=False)
    elif sys.platform == "linux":
        monkeypatch.setattr(mmap, "MAP_NORESERVE", NORESERVE, raising=False)
    before = path.read_bytes()
    with Archive.open(path, private=True) as archive, Archive.open(path, private=True) as other:
        view = archive.read(NAME)
        assert not view.readonly
        view[7] = 1
        assert archive.read(NAME)[7] == 1
        assert other.read(NAME)[7] == 0
        assert archive.verify() == [], "the file is checked, not what was written"
        view.release()
    assert path.read_bytes() == before


def test_without_it_bytes_are_read_only(path):
    with Archive.open(path) as archive:
        assert archive.read(NAME).readonly
