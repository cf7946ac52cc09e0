"""Archives that the command line is given: what is meant as one, and what is in it."""

from __future__ import annotations

from pathlib import Path

from reallm_cli.mistakes import check_archive_path
from reallm_compiler.planning import opened
from reallm_compiler.planning.opened import Opened

SUFFIX = ".reallm"
MAGIC_START = b"\x89RLM"


def open_facts(path: str) -> Opened:
    """Read the header and the manifest of a model archive.

    Raises:
        NoArchiveError: the path leads to no file.
        FormatError: the file breaks a rule of its format, or is no model archive.
    """
    check_archive_path(path)
    return opened.open_facts(path)


def is_archive(path: str) -> bool:
    """Whether a path is meant as an archive: by its suffix, or by its first bytes."""
    if path.endswith(SUFFIX):
        return True
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(MAGIC_START)) == MAGIC_START
