"""Tables: names on the left, numbers on the right, nothing wrapped.

A table that is wider than the terminal is cut into two below each other, never into broken
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import Box
from rich.table import Table
from rich.text import Text

from reallm_cli.terminal import Terminal, escape

PROSE = 30
"""Least columns of a column of prose."""

_LINES = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
_ASCII_LINES = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


@dataclass(kw_only=True)
class Sheet:
    """A table before it is drawn.

    Attributes:
        columns: headings; one that starts with `<` is aligned to the left.
        rows: cells as text.
        total: a last row below a line, if any.
        last: headings of the columns that go to the right when the sheet is too wide, so that
            what matters most stays in the first of its parts.
        wrap: heading of a column of prose, which alone may take several lines.
        always: columns that all parts keep when the sheet is too wide.
    """

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    total: Sequence[str] | None = None
    last: Sequence[str] = ()
    always: int = 1
    wrap: str = ""


def show_sheet(terminal: Terminal, sheet: Sheet, *, title: str | None = None) -> None:
    """Draw a sheet on stdout, in as many tables as the terminal's width asks for."""
    parts = [list(range(len(sheet.columns)))]
    if not _fits(terminal, sheet, parts[0]):
        parts[0].sort(key=lambda place: sheet.columns[place] in sheet.last)
    while not _fits(terminal, sheet, parts[-1]) and len(parts[-1]) > sheet.always + 1:
        wide = parts.pop()
        cut = len(wide)
        while cut > sheet.always + 1 and not _fits(terminal, sheet, wide[:cut]):
            cut -= 1
        parts += [wide[:cut], wide[: sheet.always] + wide[cut:]]
    for place, columns in enumerate(parts):
        if title and place == 0:
            terminal.data(terminal.text(title, style="bold"))
        if place:
            terminal.data()
        terminal.out.print(_draw(terminal, sheet, columns), crop=False)


def show_facts(
    terminal: Terminal, facts: Sequence[tuple[str, str]], *, title: str | None = None
) -> None:
    """Draw names and values below each other, values aligned to the left."""
    if title:
        terminal.data(terminal.text(title, style="bold"))
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        lines = value.split("\n")
        terminal.data(terminal.text(f"  {name.ljust(width)}  {lines[0]}"))
        for line in lines[1:]:
            terminal.data(terminal.text(f"  {' ' * width}  {line}"))


def _fits(terminal: Terminal, sheet: Sheet, columns: Sequence[int]) -> bool:
    if not terminal.out.is_terminal:
        return True
    rows = [sheet.columns, *sheet.rows, *([sheet.total] if sheet.total else [])]
    widths = [
        PROSE if sheet.columns[place] == sheet.wrap else max(len(row[place]) for row in rows)
        for place in columns
    ]
    return sum(widths) + 2 * len(widths) <= terminal.out.width


def _draw(terminal: Terminal, sheet: Sheet, columns: Sequence[int]) -> Table:
    ascii_only = terminal.out.options.ascii_only
    table = Table(
        box=_ASCII_LINES if ascii_only else _LINES,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=sheet.total is not None,
        header_style="bold",
        footer_style="bold",
    )
    for place in columns:
        heading = sheet.columns[place]
        table.add_column(
            Text(heading.removeprefix("<")),
            footer=_cell(terminal, sheet.total[place]) if sheet.total is not None else "",
            justify="left" if heading.startswith("<") else "right",
            no_wrap=heading != sheet.wrap,
            overflow="fold",
        )
    for row in sheet.rows:
        table.add_row(*(_cell(terminal, row[place]) for place in columns))
    return table


def _cell(terminal: Terminal, text: str) -> Text:
    return Text(escape(text, terminal.out.encoding))
