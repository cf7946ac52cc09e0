"""What the fault tests share: the checkpoints, and an output for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fault_injection import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two small checkpoints and the command line."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A path for an archive, in a folder where nothing else is."""
    folder = tmp_path / "output"
    folder.mkdir()
    return folder / "out.reallm"
