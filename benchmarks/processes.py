"""What benchmarks ask about processes."""

from __future__ import annotations

from reallm_compiler.system import status_bytes


def anonymous_bytes(pid: int | str) -> int:
    """Anonymous resident memory of a process; 0 once it is gone."""
    return status_bytes("RssAnon", pid) or 0
