"""What differs: trees of plain data field by field, rows by name, and only like with like."""

from __future__ import annotations

from typing import Any

import pytest

from reallm_compiler.errors import SourceError
from reallm_compiler.report.difference import changes, compare_documents
from reallm_compiler.report.documents import Document


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, [
            ("a.b", 1, None), ("a.c", 2, 3), ("a.d", None, 4),
        ]),
        ({"x": [{"k": 1}, {"k": 2}]}, {"x": [{"k": 1}]}, [("x[1]", {"k": 2}, None)]),
        ({"x": [{"k": 1}]}, {"x": [{"k": 2}]}, [("x[0].k", 1, 2)]),
        ({"x": [1, 2]}, {"x": [1, 3]}, [("x", [1, 2], [1, 3])]),
        ({"x": True}, {"x": 1}, [("x", True, 1)]),
        ({"x": []}, {"x": [{"k": 1}]}, [("x", [], [{"k": 1}])]),
    ],
)  # fmt: skip
def test_leaves_that_differ(a: Any, b: Any, expected: list[tuple[str, Any, Any]]) -> None:
    assert [(one.path, one.a, one.b) for one in changes(a, b)] == expected


def document(rows: dict[str, dict[str, Any]], kind: str = "budget") -> Document:
    return Document(kind=kind, name="x", settings={"totals": {}}, rows={"matrices": rows})


def test_rows_by_name() -> None:
    a = document({"p": {"bytes": 1}, "q": {"bytes": 2}, "same": {"bytes": 3}})
    b = document({"same": {"bytes": 3}, "q": {"bytes": 4}, "r": {"bytes": 5}})
    found = compare_documents(a, b)
    assert [(row.name, row.only_in) for row in found.rows["matrices"]] == [
        ("p", "a"),
        ("q", None),
        ("r", "b"),
    ]
    assert not found.equal
    assert compare_documents(a, a).equal


def test_only_like_with_like() -> None:
    with pytest.raises(SourceError, match="a budget and a recipe are not compared"):
        compare_documents(document({}), document({}, "recipe"))
