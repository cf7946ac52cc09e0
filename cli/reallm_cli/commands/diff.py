"""`reallm diff`: what differs between two archives, recipes or budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.opened import is_archive
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted, error_text, grouped
from reallm_compiler.planning.budget_rows import pattern_of
from reallm_compiler.recipe.plain_yaml import to_yaml

if TYPE_CHECKING:
    from reallm_compiler.report.difference import Change, Difference, RowChange

BYTES = "bytes"
ERROR = "relative_error"
SHOWN = 3
"""Fields of a kind of row that are named; the others are counted."""


@click.command(
    "diff",
    cls=ExampleCommand,
    short_help="Show what differs between two archives, recipes or budgets.",
    examples=[
        ("reallm diff two.reallm three.reallm", "bytes, errors, recipe and provenance"),
        (
            "reallm diff two.reallm three.reallm --decoded",
            "also how far the decoded matrices are from each other",
        ),
        (
            "reallm diff reallm-2bit mine.yaml --model path/to/model",
            "two recipes: fields, and plans and bytes of each matrix",
        ),
        ("reallm diff before.json after.json", "two files that `reallm budget --json` printed"),
    ],
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--model", metavar="MODEL", help="Plan both recipes on this model.")
@click.option("--decoded", is_flag=True, help="Decode what differs and measure how far it is.")
@decoder_option
@cost_option
@click.option("--json", "as_json", is_flag=True, help="Print every difference as JSON.")
@click.pass_obj
def diff_command(
    terminal: Terminal,
    a: str,
    b: str,
    model: str | None,
    decoded: bool,
    decoder: str | None,
    allow_cost: bool,
    as_json: bool,
) -> int:
    """Show what differs between two archives, two recipes, or two budgets.

    Recipes are compared as they are resolved, `extends` followed, field by field. Errors are those
    in the archives, measured when their matrices were coded. Ends with code 17 if anything differs.
    """
    for path in (a, b):
        if is_archive(path):
            check_archive_path(path)
        if model is not None and (is_archive(path) or path.endswith(".json")):
            raise CommandLineError("`--model` goes with two recipes", location="`reallm diff`")
    from reallm_compiler.report.difference import diff

    with Reporter(terminal) as reporter:
        found = diff(
            a,
            b,
            model=model,
            decoded=decoded,
            decoder=decoder,
            allow_cost=allow_cost,
            progress=partial(reporter.measure, "decode", "matrices"),
        )
    if as_json:
        terminal.json(found.to_json())
    else:
        _show(terminal, found)
    return ExitCode.OK if found.equal else ExitCode.DIFFERENT


def _show(terminal: Terminal, found: Difference) -> None:
    if found.equal:
        terminal.data("nothing differs")
        return
    for group, rows in found.rows.items():
        if rows:
            _show_rows(terminal, group, rows)
            terminal.data()
    for group, changes in found.settings.items():
        if changes:
            _show_changes(terminal, group, changes)
            terminal.data()
    count = sum(map(len, found.rows.values()))
    fields = sum(map(len, found.settings.values()))
    terminal.data(f"{counted(count, 'row')} and {counted(fields, 'field')} differ")


def _show_changes(terminal: Terminal, group: str, changes: Sequence[Change]) -> None:
    """A row for each field; of numbers also what b has more."""
    rows = [(change.path, _value(change.a), _value(change.b), _more(change)) for change in changes]
    columns = ["<field", "a", "b", "b - a"]
    if not any(more for *_, more in rows):
        columns, rows = ["<field", "<a", "<b"], [row[:3] for row in rows]  # type: ignore[misc]
    show_sheet(terminal, Sheet(columns=columns, rows=[*rows]), title=group)


def _show_rows(terminal: Terminal, group: str, rows: Sequence[RowChange]) -> None:
    """A row for each kind: the same name but for numbers."""
    kinds: dict[str, list[RowChange]] = {}
    for row in rows:
        kinds.setdefault(pattern_of(row.name), []).append(row)
    errors = any(ERROR in (row.a or row.b or {}) for row in rows)
    decoded = any(row.decoded_error is not None for row in rows)
    columns = ["<" + group, "differ", "bytes a", "bytes b", "b - a"]
    columns += ["mean error a", "mean error b"] if errors else []
    columns += ["distance"] if decoded else []
    columns.append("<what")
    lines = [
        [kind, grouped(len(members)), *_sizes(members)]
        + ([_mean(row.a for row in members), _mean(row.b for row in members)] if errors else [])
        + ([_mean_of([row.decoded_error for row in members])] if decoded else [])
        + [_what(members)]
        for kind, members in kinds.items()
    ]
    show_sheet(terminal, Sheet(columns=columns, rows=[*lines]))


def _sizes(rows: Sequence[RowChange]) -> list[str]:
    """Bytes of both sides, and what b has more."""
    first, second = (
        sum(side[BYTES] for side in sides if side is not None and BYTES in side)
        for sides in ([row.a for row in rows], [row.b for row in rows])
    )
    return [grouped(first), grouped(second), f"{second - first:+,}"]


def _mean(sides: Iterable[Mapping[str, Any] | None]) -> str:
    return _mean_of([side.get(ERROR) for side in sides if side is not None])


def _mean_of(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return error_text(sum(known) / len(known) if known else None)


def _what(rows: Sequence[RowChange]) -> str:
    """Which fields differ, or which side alone has the rows."""
    sides = {row.only_in for row in rows}
    if None not in sides:
        return f"only in {' and '.join(sorted(filter(None, sides)))}"
    paths = list(dict.fromkeys(change.path for row in rows for change in row.changes))
    own = [path.removeprefix("plan.") for path in paths if path.startswith("plan.")]
    named = own or [path for path in paths if path != "sha256"] or ["content"]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + more


def _value(value: Any) -> str:  # noqa: ANN401
    """A value on one line; a whole map is shown as its kind."""
    if value is None:
        return "-"
    if isinstance(value, bool | float | str | list | dict) or value is None:
        return to_yaml(value).replace("\n", " ")
    return grouped(value) if isinstance(value, int) else str(value)


def _more(change: Change) -> str:
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in (change.a, change.b)
    )
    if not numbers:
        return ""
    more = change.b - change.a
    return f"{more:+,}" if isinstance(more, int) else f"{more:+.6g}"
