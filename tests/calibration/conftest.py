"""A text, and statistics of the tiny Llama, measured once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.calibration import sequences
from tests.conftest import CORPUS

SETTINGS: dict[str, Any] = {"samples": 5, "window": 12, "device": "cpu", "progress": False}


@pytest.fixture(scope="session", autouse=True)
def small_chunks() -> Iterator[None]:
    """Two sequences in a chunk, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "CHUNK", 22)
        yield


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some hundred tokens."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(CORPUS) * 3)
    return path


@pytest.fixture(scope="session")
def settings(words: Path) -> dict[str, Any]:
    """A small calibration."""
    return {**SETTINGS, "text": [words]}


@pytest.fixture(scope="session")
def measured(
    tiny_llama: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Statistics of the tiny Llama, of an undisturbed run."""
    path = tmp_path_factory.mktemp("measured") / "tiny.stats"
    reallm.calibrate(tiny_llama, output=path, **settings)
    return path


@pytest.fixture
def needing() -> dict[str, Any]:
    """A recipe that needs statistics."""
    return {
        "reallm": 1,
        "statistics": "required",
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 4},
            "rounding": {"kind": "feedback"},
        },
    }
