"""Markup: whatever is not an element yet is text."""

from __future__ import annotations

import pytest

from reallm_compiler.report.elements import element, join, number, table, text

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


def test_text_becomes_no_markup() -> None:
    for made in (text(HOSTILE), element("p", HOSTILE), join([HOSTILE]), number(None, HOSTILE)):
        assert "<script" not in made
        assert "\x1b" not in made
        assert "\u202e" not in made
        assert "&lt;script&gt;" in made


def test_an_attribute_ends_where_it_ends() -> None:
    made = element("p", class_=HOSTILE, aria_label=HOSTILE, name="n", id=None)
    assert made.count('"') == 6
    assert made.count("<") == 2
    assert made.startswith('<p class="&lt;script&gt;')
    assert made.endswith(' name="n"></p>')


def test_elements_stay_as_they_are_and_lines_stay_lines() -> None:
    inner = element("b", "a < b")
    assert element("p", inner, "\n<") == "<p><b>a &lt; b</b>\n&lt;</p>"
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


@pytest.mark.parametrize(("value", "exact"), [(3, "3"), (0.1, "0.1"), (1 / 3, repr(1 / 3))])
def test_a_number_is_there_exactly(value: float, exact: str) -> None:
    assert number(value, "about") == f'<data value="{exact}">about</data>'


def test_a_table_names_its_rows_and_columns() -> None:
    made = table(["<name", "bytes"], [["<a>", "1"]], caption="sizes", total=["all", "1"])
    assert '<th scope="col" class="left">name</th><th scope="col">bytes</th>' in made
    assert '<th scope="row" class="left">&lt;a&gt;</th><td>1</td>' in made
    assert "<caption>sizes</caption>" in made
    assert "<tfoot><tr>" in made
