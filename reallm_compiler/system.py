"""The machine: which systems are supported, its processors, the memory that is left.

Linux is supported and tested. On macOS all that Linux alone has falls back. Windows is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from reallm_formats.errors import ReallmError

resource: Any
try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

CGROUP = Path("/sys/fs/cgroup")
"""Where the limits of a container stand (control groups, version 2)."""

PROC = Path("/proc")
"""Where Linux reports the memory and processors of a process."""

CACHED = ("inactive_file", "active_file")
"""Rows of `memory.stat` for pages of files, which the system can give back."""


class UnsupportedSystemError(ReallmError):
    """This operating system is not supported."""

    code: ClassVar[str] = "system"


def check_system() -> None:
    """Refuse a system that is not supported.

    Raises:
        UnsupportedSystemError: this is Windows.
    """
    if sys.platform == "win32":
        raise UnsupportedSystemError(
            "reallm does not run on Windows",
            note="it needs file locks that end with their process, and renames over open files",
            hint="use the Windows Subsystem for Linux (WSL 2), Linux or macOS",
        )


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that this process may still take, or None where the system does not report it."""
    limits = []
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
    except OSError:
        pass
    contained = _container_memory()
    if contained is not None:
        limits.append(contained)
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - _virtual_bytes())
    return min(limits) if limits else None


def _container_memory() -> int | None:
    """Bytes that the limit of this control group leaves; None without one.

    What it has used counts the files that it has read and written, too. The system gives such
    pages back before the limit is reached, so they are free.
    """
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        if limit == "max":
            return None
        free = int(limit) - used
    except (OSError, ValueError):
        return None
    try:
        rows = [line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()]
        cached = sum(int(row[1]) for row in rows if row[0] in CACHED)
    except (OSError, ValueError, IndexError):
        cached = 0
    return min(free + cached, int(limit))


def _virtual_bytes() -> int:
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def status_bytes(field: str, pid: int | str = "self") -> int | None:
    """What Linux says of a process's memory, such as `VmHWM`, in bytes; None where it does not."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
    except (OSError, ValueError, StopIteration):
        return None


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None where the system does not report it."""
    # Linux's own count begins with the program; that of `resource` begins with the process that
    # started it, and so is never below what that one held.
    peak = status_bytes("VmHWM")
    if peak is not None:
        return peak
    if resource is None:
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
