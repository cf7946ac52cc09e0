"""A draw of the kills in crash_recovery.py: real kills, and the bytes of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("crash_recovery.py")


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
    good = [line.split() for line in told if "struck 1 of 1  archives equal 1 of 1" in line]
    # In a training: gone on with by two workers, for own decoders and for a shared one.
    phases = ["reserve", "slot", "journal", "manifest", "rename", "renamed", "training", "training"]
    assert [words[0] for words in good] == phases
    assert told[-1] == "every kill struck, all archives equal"
