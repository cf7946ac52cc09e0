"""What `reallm inspect` shows of statistics."""

from __future__ import annotations

from typing import Any

from reallm_cli.exit_codes import ExitCode
from reallm_cli.mistakes import CommandLineError
from reallm_cli.numbers import grouped
from reallm_cli.opened import provenance_text
from reallm_cli.plain_yaml import to_yaml
from reallm_cli.tables import Sheet, show_facts, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.hints import did_you_mean, nearest
from reallm_formats import Archive, StatisticsEntry, names, section_bytes


def inspect_statistics(
    terminal: Terminal, archive: Archive, path: str, name: str | None, *, as_json: bool
) -> int:
    """Show statistics, or those of one matrix."""
    document = archive.statistics
    rows = list(document.matrices)
    if name is not None:
        rows = [row for row in rows if row.name == name.removesuffix(".weight")]
        if not rows:
            raise CommandLineError(
                f"there are no statistics of `{name}`",
                location=path,
                hint=did_you_mean(nearest(name, [row.name for row in document.matrices])),
            )
    if as_json:
        plain = [_row_json(archive, row) for row in rows]
        terminal.json(plain[0] if name is not None else _whole_json(archive, plain))
        return ExitCode.OK
    facts = [
        ("file", path),
        ("format", f"version {archive.header.major}.{archive.header.minor}, kind `statistics`"),
        ("digest", archive.digest.hex()),
        ("tokens", grouped(document.tokens)),
        *provenance_text(document.provenance).items(),
    ]
    show_facts(terminal, facts, title="statistics")
    if document.settings:
        terminal.data()
        terminal.data(terminal.text("settings", style="bold"))
        terminal.data(terminal.text(to_yaml(dict(document.settings), 2)))
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
                grouped(_bytes(row)),
            )
            for row in rows
        ],
    )
    show_sheet(terminal, sheet)
    return ExitCode.OK


def _whole_json(archive: Archive, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": {"major": archive.header.major, "minor": archive.header.minor},
        "kind": "statistics",
        "features": list(archive.manifest.features),
        "digest": archive.digest.hex(),
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
        "bytes": _bytes(row),
    }


def _counts(archive: Archive, row: StatisticsEntry) -> tuple[int, int]:
    """Tokens that reached a matrix, and those of them that were left out."""
    data = bytes(archive.read(names.matrix_section(row.name, "counts")))
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


def _bytes(row: StatisticsEntry) -> int:
    return sum(section_bytes(dtype, shape) for _, dtype, shape in row.sections())
