"""What `reallm inspect` shows of archives of every kind but models in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from reallm_cli.mistakes import CommandLineError
from reallm_cli.terminal import Terminal
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.recipe.plain_yaml import to_yaml
from reallm_formats import Archive


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=_Named)


def archive_facts(archive: Archive, path: str) -> list[tuple[str, str]]:
    """File, format and digest, for the head of a table."""
    version = f"version {archive.header.major}.{archive.header.minor}"
    return [
        ("file", path),
        ("format", f"{version}, kind `{archive.manifest.kind}`"),
        ("digest", archive.digest.hex()),
    ]


def archive_json(archive: Archive) -> dict[str, Any]:
    """The same with features, for JSON."""
    return {
        "format": {"major": archive.header.major, "minor": archive.header.minor},
        "kind": archive.manifest.kind,
        "features": list(archive.manifest.features),
        "digest": archive.digest.hex(),
    }


def rows_named(rows: Sequence[Row], name: str | None, path: str, missing: str) -> list[Row]:
    """The row of a matrix; all rows without a name.

    Raises:
        CommandLineError: there is none; `missing` says so.
    """
    if name is None:
        return list(rows)
    found = [row for row in rows if row.name == name.removesuffix(".weight")]
    if not found:
        hint = did_you_mean(nearest(name, [row.name for row in rows]))
        raise CommandLineError(missing, location=path, hint=hint)
    return found


def show_settings(terminal: Terminal, settings: Mapping[str, Any], title: str = "settings") -> None:
    """Settings as YAML below their title; nothing without any."""
    if settings:
        terminal.data()
        terminal.data(terminal.text(title, style="bold"))
        terminal.data(terminal.text(to_yaml(dict(settings), 2)))
