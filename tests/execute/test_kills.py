"""A draw of the study in benchmarks/kills.py: real kills, and the bytes of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_killed_at_every_phase() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--times", "1", "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert sum("killed 1  same bytes" in line for line in told) == 8
    # In a training: gone on with by two workers, for own decoders and for a shared one.
    assert sum(line.startswith("training  workers 1  killed 1") for line in told) == 2
    assert "all archives equal" in done.stdout
