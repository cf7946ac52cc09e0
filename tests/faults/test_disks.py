"""Disks that are full or read-only, and files that the system does not allow."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from tests.faults.fault_injection import (
    FINISHED,
    MATRICES,
    MS_RDONLY,
    MS_REMOUNT,
    Bench,
    mount,
    refused,
    small_disk,
    tasks_done,
    without_override,
)


@pytest.mark.faults
def test_a_disk_full_before_the_start(bench: Bench, tmp_path: Path) -> None:
    """Known in the first second, by the exact length."""
    size = len(bench.undisturbed("slow"))
    with small_disk(tmp_path / "full", size // 2) as folder:
        output = folder / "out.reallm"
        output.write_bytes(FINISHED)
        result = bench.run(bench.arguments("slow", output, "--force"))
        refused(result, 7, "disk is too small", f"{size:,}", str(folder))
        assert output.read_bytes() == FINISHED
        assert [entry.name for entry in folder.iterdir()] == [output.name]


def test_a_disk_full_in_the_journal(bench: Bench, tmp_path: Path) -> None:
    """Sections are reserved; only the journal can still meet a full disk, and what it has stays."""
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-len(bench.undisturbed("slow")) // page)
    with small_disk(tmp_path / "tight", (pages + 1) * page) as folder:
        output = folder / "out.reallm"
        result = bench.run(bench.arguments("slow", output))
        refused(result, 7, "journal", "No space left", "free disk space", "same command again")
        assert 3 <= tasks_done(output) < MATRICES
        assert mount(folder, f"size={(pages + 64) * page}", MS_REMOUNT) == 0
        bench.resumes(output)


@pytest.mark.faults
def test_a_file_too_large_for_the_system(bench: Bench, output: Path) -> None:
    size = len(bench.undisturbed("slow"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    result = bench.run(bench.arguments("slow", output), limit)
    refused(result, 7, f"cannot reserve {size:,} bytes", "File too large", str(output.parent))
    assert not list(output.parent.iterdir())


def test_a_read_only_folder(bench: Bench, output: Path) -> None:
    output.write_bytes(FINISHED)
    output.parent.chmod(0o555)
    result = bench.run(bench.arguments("quick", output, "--force"), without_override)
    refused(result, 6, "read-only", str(output.parent))
    assert output.read_bytes() == FINISHED
    output.parent.chmod(0o755)


@pytest.mark.faults
def test_a_read_only_file_system(bench: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "sealed", 1 << 20) as folder:
        output = folder / "out.reallm"
        output.write_bytes(FINISHED)
        assert mount(folder, "size=1m", MS_REMOUNT | MS_RDONLY) == 0
        result = bench.run(bench.arguments("quick", output, "--force"))
        refused(result, 6, "read-only", str(folder))
        assert output.read_bytes() == FINISHED
