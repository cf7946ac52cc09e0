"""What `reallm inspect` shows of statistics."""

from __future__ import annotations

from typing import Any

from reallm_cli.archive_views import archive_facts, archive_json, rows_named, show_settings
from reallm_cli.exit_codes import ExitCode
from reallm_cli.tables import Sheet, show_facts, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import grouped
from reallm_compiler.planning.opened import provenance_text
from reallm_formats import Archive, StatisticsEntry, names


def inspect_statistics(
    terminal: Terminal, archive: Archive, path: str, name: str | None, *, as_json: bool
) -> int:
    """Show statistics, or those of one matrix."""
    document = archive.statistics
    missing = f"there are no statistics of `{name}`"
    rows = rows_named(document.matrices, name, path, missing)
    if as_json:
        plain = [_row_json(archive, row) for row in rows]
        terminal.json(plain[0] if name is not None else _whole_json(archive, plain))
        return ExitCode.OK
    facts = [
        *archive_facts(archive, path),
        ("tokens", grouped(document.tokens)),
        *provenance_text(document.provenance).items(),
    ]
    show_facts(terminal, facts, title="statistics")
    show_settings(terminal, document.settings)
    terminal.data()
    sheet = Sheet(
        columns=["<matrix", "shape", "<inputs", "<outputs", "tokens", "left out", "bytes"],
        rows=[
            (
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                row.input_form if row.inputs == row.name else f"{row.input_form}, of {row.inputs}",
                row.output_form,
                *map(grouped, _counts(archive, row)),
                grouped(row.nbytes),
            )
            for row in rows
        ],
    )
    show_sheet(terminal, sheet)
    return ExitCode.OK


def _whole_json(archive: Archive, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **archive_json(archive),
        "tokens": archive.statistics.tokens,
        "provenance": provenance_text(archive.statistics.provenance),
        "settings": dict(archive.statistics.settings),
        "matrices": rows,
        "file_bytes": archive.file_bytes,
    }


def _row_json(archive: Archive, row: StatisticsEntry) -> dict[str, Any]:
    reached, left_out = _counts(archive, row)
    return {
        **row.plain(),
        "sha256": row.sha256.hex(),
        "tokens": reached,
        "left_out": left_out,
        "bytes": row.nbytes,
    }


def _counts(archive: Archive, row: StatisticsEntry) -> tuple[int, int]:
    """Tokens that reached a matrix, and those of them that were left out."""
    data = bytes(archive.read(names.matrix_section(row.name, "counts")))
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
