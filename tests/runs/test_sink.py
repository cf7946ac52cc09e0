"""Sinks: a trial stores nothing, and its digests are those of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.sink import FileSink, NullSink
from reallm_formats import Writer, layout

DOCUMENT = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}
PARTS = [b"one", memoryview(b"two"), b"three"]
NAME = "file:a"
PLACED = layout(kind="model", document=DOCUMENT, sections=[(NAME, "u8", (11,))])


@pytest.fixture
def sink(tmp_path: Path) -> FileSink:
    Writer.create(tmp_path / "o", PLACED).close()
    return FileSink(tmp_path / "o", PLACED)


def test_both_give_the_same_digest(sink: FileSink) -> None:
    with sink, NullSink() as nothing:
        assert sink.write(NAME, iter(PARTS)) == nothing.write(NAME, iter(PARTS))
        sink.flush()
        nothing.flush()
        assert sink.read(NAME) == b"onetwothree"
        assert nothing.read(NAME) is None


def test_a_disk_that_refuses_is_a_compile_error(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Writer, name: str, parts: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "write_parts", refuse)
    with sink, pytest.raises(CompileError, match="No space left") as caught:
        sink.write(NAME, PARTS)
    assert caught.value.location == f"section {NAME}"
