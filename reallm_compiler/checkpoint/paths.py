"""Files of a checkpoint, opened with suspicion.

A checkpoint is untrusted input. A name in its index, or a symbolic link in its folder, may
point at any file of this machine, and what it points at could end up inside an archive that is
passed on. So a file belongs to a checkpoint only if, with all links followed, it lies

- inside the checkpoint's folder, or
- among the blobs of the same repository of the Hub's cache, when the folder is
  `models--ORG--NAME/snapshots/REVISION` or lies in it: there every file is a link to a file of
  `models--ORG--NAME/blobs`. That folder, or single blobs, may have been moved to another disk and
  linked. Where such a link leads must still look like the Hub's: a file directly in a folder
  named `blobs`, or one whose name is a hash, as the Hub names blobs (40 or 64 hex digits).

Only plain files are opened: a pipe or a device of that name would hang the run.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from reallm_compiler.errors import SourceError
from reallm_compiler.hints import did_you_mean, nearest
from reallm_formats.system import CLOEXEC, NONBLOCK

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def resolve_inside(folder: Path, name: str) -> Path:
    """The real path of a checkpoint's file.

    Args:
        folder: the checkpoint's folder.
        name: a path relative to it, as an index or a listing gives it.

    Raises:
        SourceError: the file lies outside the checkpoint (module docstring).
    """
    parts = name.replace("\\", "/").split("/")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise _outside(folder, name) from error
    if not name or "\0" in name or name[0] in "/\\" or ".." in parts or ":" in parts[0]:
        raise _outside(folder, name)
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if target.is_relative_to(root) or _is_blob(root, root / name, target):
        return target
    raise _outside(folder, name, target)


def _is_blob(root: Path, path: Path, target: Path) -> bool:
    """Whether a path in a snapshot of the Hub's cache leads to a blob of its repository."""
    repository = _repository(root)
    if repository is None:
        return False
    blobs = os.path.realpath(repository / "blobs")
    link = os.path.join(path.parent, os.readlink(path)) if path.is_symlink() else str(path)
    if blobs not in (os.path.realpath(os.path.dirname(link)), str(target.parent)):
        return False
    return target.parent.name == "blobs" or _HASH.fullmatch(target.name) is not None


def _repository(root: Path) -> Path | None:
    """The repository of the Hub's cache whose snapshot `root` is, or lies in."""
    for folder in (root, *root.parents):
        snapshots, repository = folder.parent, folder.parent.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            return repository
    return None


def _outside(folder: Path, name: str, target: Path | None = None) -> SourceError:
    how = f"{name!r} is a link to {str(target)!r}" if target else f"{name!r} points"
    return SourceError(
        f"{how}, outside the checkpoint's folder",
        location=str(folder),
        note="a checkpoint that links to other files of this machine is not read",
        hint="if the file is yours, put a copy (or a hard link) of it into the folder",
    )


def open_regular(path: Path, label: str) -> BinaryIO:
    """Opens a plain file for reading.

    Args:
        path: the file.
        label: how messages call it.

    Raises:
        SourceError: the file is missing, may not be read, or is no plain file.
    """
    try:
        # Without waiting: opening a pipe that nobody writes to would block forever.
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK | CLOEXEC)
    except OSError as error:
        raise unreadable(error, label) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError("not a plain file", location=label)
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, label: str, limit: int) -> bytes:
    """The whole of a plain file of at most `limit` bytes."""
    with open_regular(path, label) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise unreadable(error, label) from error
    if len(data) > limit:
        raise SourceError(f"the file is longer than {limit:,} bytes", location=label)
    return data


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """Bytes of a JSON file that must hold a mapping."""
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise SourceError("the file is nested too deeply", location=label) from None
    except json.JSONDecodeError as error:
        raise SourceError(
            f"the file is not valid JSON: {error.msg.lower()}",
            location=f"{label}:{error.lineno}:{error.colno}",
        ) from error
    except ValueError as error:
        raise SourceError(f"the file is not valid JSON: {error}", location=label) from error
    if not isinstance(document, dict):
        raise SourceError("the file does not hold a JSON mapping", location=label)
    return document


def unreadable(error: OSError, label: str) -> SourceError:
    """The operating system's complaint about a file, in our words."""
    if isinstance(error, FileNotFoundError):
        return SourceError("the file does not exist", location=label)
    if isinstance(error, PermissionError):
        return SourceError(
            "the file may not be read",
            location=label,
            hint="change its permissions, or run as a user that may read it",
        )
    reason = (error.strerror or str(error)).lower()
    return SourceError(f"the file cannot be read: {reason}", location=label)


def list_files(folder: Path) -> list[str]:
    """Names of everything in a folder, sorted.

    Raises:
        SourceError: the folder is missing, is a file, or may not be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError as error:
        raise missing(folder) from error
    except NotADirectoryError as error:
        raise SourceError("this is a file, not a folder", location=str(folder)) from error
    except PermissionError as error:
        raise SourceError(
            "the folder may not be read",
            location=str(folder),
            hint="change its permissions, or run as a user that may read it",
        ) from error
    except OSError as error:
        raise unreadable(error, str(folder)) from error


def missing(path: Path) -> SourceError:
    """The error for a path that does not exist, with the nearest name that does."""
    return SourceError("no such file or folder", location=str(path), hint=near_miss(path))


def near_miss(path: Path) -> str | None:
    """What the writer of a wrong path may have meant: an existing name like the first bad one."""
    whole = Path(os.path.abspath(path))
    for candidate in (whole, *whole.parents):
        parent = candidate.parent
        if not parent.is_dir():
            continue
        try:
            names = sorted(os.listdir(parent))
        except OSError:
            return None
        for name in nearest(candidate.name, names, 1):
            found = parent / name / whole.relative_to(candidate)
            return did_you_mean([str(found if found.exists() else parent / name)])
        return f"{str(parent)!r} exists, but holds no {candidate.name!r}"
    return None
