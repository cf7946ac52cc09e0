"""HTML and SVG as values: whatever is not an element yet is text, and is escaped.

Names in an archive are chosen by whoever made it. No function here takes ready markup from
outside, so no name can become any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from reallm_formats.errors import printable

VOID = frozenset({"meta", "br"})
"""Elements of HTML that have no end."""


class Element(str):
    """Finished markup."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Element:
    """An element with its children; text among them is escaped.

    Args:
        name: of the element.
        children: elements, or text from anywhere.
        attributes: their values; `_` in a name stands for `-`, and one at its end is dropped
            (`class_`). None stands for none.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{_attribute(value)}"')
    start = Element(f"<{' '.join(parts)}>")
    return start if name in VOID else join([start, *children, Element(f"</{name}>")])


def join(children: Iterable[str], between: str = "") -> Element:
    """Elements and text, escaped, after each other."""
    return Element(between.join(map(text, children)))


def text(value: str) -> Element:
    """Text with what would be markup, steer a terminal or turn its direction written out."""
    if isinstance(value, Element):
        return value
    return Element("\n".join(escape(printable(line)) for line in value.split("\n")))


def number(value: float | None, shown: str) -> Element:
    """A number as it is shown, and exactly, for whoever reads the file by a program."""
    if value is None:
        return text(shown)
    return element("data", shown, value=repr(value))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str | None = None,
    total: Sequence[str] | None = None,
    class_: str | None = None,
) -> Element:
    """A table that scrolls by itself where it is too wide.

    Args:
        columns: headings; those that start with `<` are aligned to the left. The first column
            names the row.
        rows: cells: elements, or text from anywhere; a `td` is taken as it is.
        caption: what the table shows.
        total: a last row.
        class_: for its style.
    """
    left = [heading.startswith("<") for heading in columns]
    head = [
        element("th", heading.removeprefix("<"), scope="col", class_="left" if here else None)
        for heading, here in zip(columns, left, strict=True)
    ]
    parts = [element("caption", caption)] if caption else []
    parts.append(element("thead", element("tr", *head)))
    parts.append(element("tbody", *(_row(row, left) for row in rows)))
    if total is not None:
        parts.append(element("tfoot", _row(total, left)))
    whole = element("table", *parts, class_=class_)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _row(cells: Sequence[str], left: Sequence[bool]) -> Element:
    made = [element("th", cells[0], scope="row", class_="left" if left[0] else None)]
    for cell, here in zip(cells[1:], left[1:], strict=True):
        if isinstance(cell, Element) and cell.startswith("<td"):
            made.append(cell)
        else:
            made.append(element("td", cell, class_="left" if here else None))
    return join([element("tr", *made), Element("\n")])


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(printable(value))
    return f"{value:g}"
