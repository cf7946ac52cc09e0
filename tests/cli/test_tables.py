"""Tables are drawn by plain padding, and look as rich would draw them."""

from __future__ import annotations

import io

import pytest

from reallm_cli import tables
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal

SHEETS = {
    "numbers": Sheet(
        columns=["<name", "count", "bits"], rows=[("a.b", "1", "2.5"), ("c", "20", "")]
    ),
    "with a total": Sheet(
        columns=["<name", "count"], rows=[("a", "1")], total=("all", "1,000,000")
    ),
    "no rows": Sheet(columns=["<name", "count"]),
    "text at the end": Sheet(columns=["n", "<set by"], rows=[("1", "here"), ("2", "r.yaml:12")]),
    "wide and unsafe letters": Sheet(
        columns=["<n", "x"],
        rows=[("層.0", "1"), ("e\u0301", "22"), ("a\tb\x1b[2J", "é"), ("[b]", "")],
    ),
    "a cell of two lines": Sheet(columns=["<n", "x"], rows=[("a\nb", "1"), ("c", "2")]),
    "prose": Sheet(columns=["<n", "<why"], rows=[("a", "because " * 20)], wrap="<why"),
    "one column": Sheet(columns=["<n"], rows=[("a",), ("bb",)], total=("ccc",)),
}


def shown(sheet, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    show_sheet(Terminal(stream, stream), sheet, title="title")
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("sheet", SHEETS.values(), ids=SHEETS.keys())
def test_padding_looks_as_rich_does(sheet, encoding, monkeypatch):
    plain = shown(sheet, encoding)
    monkeypatch.setattr(tables, "_drawn", lambda *_: None)
    assert plain == shown(sheet, encoding)


def test_a_long_table_never_meets_rich(monkeypatch):
    monkeypatch.delattr(tables, "_draw")
    sheet = Sheet(columns=["<name", "bits"], rows=[(f"w{n}", "2") for n in range(1000)])
    assert shown(sheet, "utf-8").count("\n") == 1 + 2 + 1000
