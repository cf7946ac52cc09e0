"""The made-up package, importable, and registered as an installed one would be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def lloyd_max(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the quantizer `lloyd_max` for one test."""
    from reallm_compiler.stages import register, unregister

    monkeypatch.syspath_prepend(HERE)
    from lloyd_max.stage import KIND

    register(KIND)
    yield
    unregister(KIND)
    for name in [name for name in sys.modules if name.split(".")[0] == "lloyd_max"]:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which the package is installed, with its entry point."""
    site = tmp_path / "site"
    info = site / "lloyd_max-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lloyd-max\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[reallm.stages]\nquantizer.lloyd_max = lloyd_max.stage:KIND\n"
    )
    (site / "lloyd_max").symlink_to(HERE / "lloyd_max")
    return site
