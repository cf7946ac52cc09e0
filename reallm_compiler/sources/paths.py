"""Files of a checkpoint, opened with suspicion.

A checkpoint comes from a stranger. A name in its index, or a symbolic link in its folder, may
point at any file of this machine, and what it points at could end up inside an archive that is
passed on. So a file belongs to a checkpoint only if, with all links followed, it lies

- inside the checkpoint's folder, or
- in `blobs` of the same repository of the Hub's cache, when the folder is
  `models--ORG--NAME/snapshots/REVISION`: there every file is a link into `../../blobs`.

Only plain files are opened: a pipe or a device of that name would hang the run.
"""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from reallm_compiler.errors import SourceError


def resolve_inside(folder: Path, name: str) -> Path:
    """The real path of a checkpoint's file.

    Args:
        folder: the checkpoint's folder.
        name: a path relative to it, as an index or a listing gives it.

    Raises:
        SourceError: the file lies outside the checkpoint (module docstring).
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name[0] in "/\\" or ".." in parts or ":" in parts[0]:
        raise _outside(folder, name)
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if target.is_relative_to(root) or target.parent == _cache_blobs(root):
        return target
    raise _outside(folder, name, target)


def _cache_blobs(root: Path) -> Path | None:
    """The folder of blobs that a snapshot of the Hub's cache links into, if root is one."""
    snapshots, repository = root.parent, root.parent.parent
    if snapshots.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def _outside(folder: Path, name: str, target: Path | None = None) -> SourceError:
    how = f"{name!r} is a link to {str(target)!r}" if target else f"{name!r} points"
    return SourceError(
        f"{how}, outside the checkpoint's folder",
        location=str(folder),
        note="a checkpoint that reaches for other files of this machine is not read",
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
        # Without waiting: opening a pipe that nobody writes to would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
    for place in (whole, *whole.parents):
        parent = place.parent
        if not parent.is_dir():
            continue
        try:
            names = sorted(os.listdir(parent))
        except OSError:
            return None
        by_lower = {name.lower(): name for name in names}
        close = difflib.get_close_matches(place.name.lower(), by_lower, n=1, cutoff=0.6)
        if close:
            found = parent / by_lower[close[0]] / whole.relative_to(place)
            if found.exists():
                return f"did you mean {str(found)!r}?"
            return f"did you mean {str(parent / by_lower[close[0]])!r}?"
        return f"{str(parent)!r} exists, but holds no {place.name!r}"
    return None
