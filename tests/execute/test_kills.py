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
        timeout=300,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed 1  same bytes") == 6
    assert "all archives equal" in done.stdout
