"""What benchmarks ask about processes."""

from __future__ import annotations

from pathlib import Path


def anonymous_bytes(pid: int | str) -> int:
    """Anonymous resident memory of a process; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
