"""Real kills by crash_recovery.py, and the bytes of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.crash_recovery import PHASES

SCRIPT = Path(__file__).with_name("crash_recovery.py")
FAULTS = pytest.mark.faults


@pytest.mark.parametrize(
    ("phases", "workers", "times"),
    [
        pytest.param(["slot", "rename"], [1], 1, id="a draw"),
        pytest.param([*PHASES, "training"], [1], 1, id="each phase", marks=FAULTS),
        pytest.param([*PHASES, "worker", "training"], [1, 2], 5, id="all", marks=FAULTS),
    ],
)
def test_killed(phases: list[str], workers: list[int], times: int) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--times", str(times)),
            *("--workers", *map(str, workers), "--phase", *phases),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=7200,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    good = [line.split() for line in lines if f"struck {times} of {times} " in line]
    # A training is finished by two workers, for own decoders and for a shared one.
    wanted = [
        phase
        for many in workers
        for phase in phases
        for _ in range(2 if phase == "training" else 1)
        if phase != "worker" or many > 1
    ]
    assert [first for first, *_ in good] == wanted
    assert lines[-1] == "every kill struck, all archives equal"
