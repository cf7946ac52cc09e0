"""What `reallm inspect` shows of an adapter."""

from __future__ import annotations

from typing import Any

from reallm_cli.archive_views import archive_facts, archive_json, rows_named, show_settings
from reallm_cli.exit_codes import ExitCode
from reallm_cli.tables import Sheet, show_facts, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import grouped
from reallm_compiler.planning.opened import provenance_text
from reallm_compiler.storage.base import DTYPE_NAMES
from reallm_formats import AdapterEntry, Archive, section_bytes


def inspect_adapter(
    terminal: Terminal, archive: Archive, path: str, name: str | None, *, as_json: bool
) -> int:
    """Show an adapter, or one of its matrices."""
    document = archive.adapter
    missing = f"the adapter holds nothing called `{name}`"
    rows = rows_named(document.matrices, name, path, missing)
    if as_json:
        plain = [_row_json(row) for row in rows]
        terminal.json(plain[0] if name is not None else _whole_json(archive, plain))
        return ExitCode.OK
    facts = [
        *archive_facts(archive, path),
        ("base", document.base.hex()),
        *provenance_text(document.provenance).items(),
    ]
    show_facts(terminal, facts, title="adapter")
    show_settings(terminal, document.settings)
    terminal.data()
    sheet = Sheet(
        columns=["<matrix", "shape", "rank", "<factors", "<gains", "bytes", "rounding"],
        rows=[
            (
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                str(row.rank),
                DTYPE_NAMES[row.dtype] if row.rank else "none",
                _gains(row),
                grouped(row.nbytes),
                f"{100 * row.rounding_error:.3f} %",
            )
            for row in rows
        ],
    )
    if rows or not document.replaced:
        show_sheet(terminal, sheet)
    if document.replaced and name is None:
        terminal.data()
        others = [
            (section, dtype, " x ".join(map(str, shape)), grouped(section_bytes(dtype, shape)))
            for section, dtype, shape in document.replaced
        ]
        columns = ["<replaced section", "<type", "extents", "bytes"]
        show_sheet(terminal, Sheet(columns=columns, rows=[*others]))
    return ExitCode.OK


def _whole_json(archive: Archive, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **archive_json(archive),
        "base": archive.adapter.base.hex(),
        "provenance": provenance_text(archive.adapter.provenance),
        "settings": dict(archive.adapter.settings),
        "matrices": rows,
        "replaced": [
            {
                "name": name,
                "dtype": dtype,
                "shape": list(shape),
                "bytes": section_bytes(dtype, shape),
            }
            for name, dtype, shape in archive.adapter.replaced
        ],
        "file_bytes": archive.file_bytes,
    }


def _gains(row: AdapterEntry) -> str:
    """Which gains a row has."""
    known = [name for name, has in (("rows", row.gain), ("columns", row.column_gain)) if has]
    return ", ".join(known) or "none"


def _row_json(row: AdapterEntry) -> dict[str, Any]:
    return {**row.plain(), "bytes": row.nbytes}
