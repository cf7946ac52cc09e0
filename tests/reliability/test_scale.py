"""Draws of benchmarks/scale.py: a small checkpoint, and sizes without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "args",
    [
        pytest.param([], id="as it is", marks=pytest.mark.slow),
        # An embedding of 0.5 GB, which is cast to half of it.
        pytest.param(["--vocabulary", "1000000", "--recipe", "rtn-4bit"], id="kept"),
    ],
)
def test_memory_stays_within_the_bound(args: list[str]) -> None:
    small = ["--gigabytes", "0.0006", "--hidden", "128", "--inner", "344", "--workers", "1"]
    output = run(*small, *args)
    assert "within the bound" in output
    assert "intact" in output
    assert "process 0" in output


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(
            ["--matrices", "1680", "--rules", "56", "--layers", "2", "--forms", "json"],
            id="a draw",
        ),
        pytest.param([], id="as it is", marks=pytest.mark.slow),
    ],
)
def test_sizes_of_many_matrices_without_torch(args: list[str]) -> None:
    """The limits themselves are held by the script; a busy machine may take longer here."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--budget", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert "1,000 matrices" in done.stdout, done.stderr
    assert "torch not imported" in done.stdout
    (with_torch,) = {line for line in done.stdout.splitlines() if "torch imported" in line}
    assert "Llama-2-70B" in with_torch
