"""Files as the operating system has them: Linux, and macOS where it differs.

What a system lacks falls back here, so that no other file asks which system it runs on.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

fcntl: Any
try:
    import fcntl
except ModuleNotFoundError:  # Windows, which is refused by whoever needs a lock
    fcntl = None

CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
"""Flag of `os.open`: no child process inherits the file. Python does so by itself as well."""

NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)
"""Flag of `os.open`: opening a pipe that nobody writes to does not wait."""


def sync(descriptor: int) -> None:
    """Wait until a file or a folder is on the disk; OSError if the disk refuses."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: its fsync leaves data in the drive's own memory
        with contextlib.suppress(OSError):  # a file system that cannot
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_path(path: str | os.PathLike[str]) -> None:
    """The same for a path: a folder makes renames and removals in it durable."""
    descriptor = os.open(path, os.O_RDONLY | CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process holds it.

    Raises:
        OSError: the file system, or the system, has no locks.
    """
    if fcntl is None:
        raise OSError("this system has no file locks that are released when a process dies")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
