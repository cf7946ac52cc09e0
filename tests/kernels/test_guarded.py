"""Compiled kernels read nothing outside of a matrix's sections."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kernels.test_compiled import HERE


@pytest.mark.skipif(not HERE, reason="no kernels run here")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are guarded by mprotect")
def test_nothing_is_read_outside_of_sections() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.guarded", *HERE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert all(f"{target} trellis" in done.stdout for target in HERE), done.stderr[-2000:]
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-2000:])
