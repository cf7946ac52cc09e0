"""Tables: names on the left, numbers on the right, nothing wrapped.

A table that is wider than the terminal is cut into two below each other, never into broken
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from reallm_cli.terminal import Terminal, escape

PROSE = 30
"""Least columns of a column of prose."""

_LINES = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
_BOLD = Style(bold=True)
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
        parts[0].sort(key=lambda column: sheet.columns[column] in sheet.last)
    while not _fits(terminal, sheet, parts[-1]) and len(parts[-1]) > sheet.always + 1:
        wide = parts.pop()
        cut = len(wide)
        while cut > sheet.always + 1 and not _fits(terminal, sheet, wide[:cut]):
            cut -= 1
        parts += [wide[:cut], wide[: sheet.always] + wide[cut:]]
    for index, columns in enumerate(parts):
        if title and index == 0:
            terminal.data(terminal.text(title, style="bold"))
        if index:
            terminal.data()
        lines = _drawn(terminal, sheet, columns)
        drawn = _draw(terminal, sheet, columns) if lines is None else lines
        terminal.out.print(drawn, crop=False)


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
        PROSE if sheet.columns[column] == sheet.wrap else max(len(row[column]) for row in rows)
        for column in columns
    ]
    return sum(widths) + 2 * len(widths) <= terminal.out.width


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The lines of a table as they are printed, and which of them are bold."""

    lines: Sequence[str]
    bold: frozenset[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for index, line in enumerate(self.lines):
            yield Segment(line, _BOLD if index in self.bold else None)
            yield Segment.line()


def _drawn(terminal: Terminal, sheet: Sheet, columns: Sequence[int]) -> _Drawn | None:
    """What `_draw` makes, by plain padding: rich takes a millisecond for each row.

    None where only rich can do it: for prose, for cells of several lines, and for a table that
    is still too wide.
    """
    if any(sheet.columns[column] == sheet.wrap for column in columns):
        return None
    encoding = terminal.out.encoding
    rows = [[sheet.columns[column].removeprefix("<") for column in columns]]
    rows += [[escape(row[column], encoding) for column in columns] for row in sheet.rows]
    if sheet.total is not None:
        rows.append([escape(sheet.total[column], encoding) for column in columns])
    if any("\n" in cell for row in rows for cell in row):
        return None
    widths = [max(map(_cells, cells)) for cells in zip(*rows, strict=True)]
    whole = sum(widths) + 2 * (len(widths) - 1)
    if whole > terminal.out.width:
        return None
    left = [sheet.columns[column].startswith("<") for column in columns]
    lines = ["  ".join(map(_padded, row, widths, left)) for row in rows]
    rule = ("-" if terminal.out.options.ascii_only else "\u2500") * whole
    lines.insert(1, rule)
    if sheet.total is not None:
        lines.insert(-1, rule)
    return _Drawn(lines, frozenset({0, len(lines) - 1} if sheet.total is not None else {0}))


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - _cells(text))
    return text + space if left else space + text


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
    for column in columns:
        heading = sheet.columns[column]
        table.add_column(
            Text(heading.removeprefix("<")),
            footer=_cell(terminal, sheet.total[column]) if sheet.total is not None else "",
            justify="left" if heading.startswith("<") else "right",
            no_wrap=heading != sheet.wrap,
            overflow="fold",
        )
    for row in sheet.rows:
        table.add_row(*(_cell(terminal, row[column]) for column in columns))
    return table


def _cell(terminal: Terminal, text: str) -> Text:
    return Text(escape(text, terminal.out.encoding))
