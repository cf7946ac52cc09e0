"""Statistics of the tiny Llama, and a count of what is coded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.codecs import encode_matrix
from reallm_compiler.execute import coder
from tests.conftest import CORPUS


@pytest.fixture(scope="session")
def tiny_statistics(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `calibrate` measures on the tiny Llama."""
    folder = tmp_path_factory.mktemp("statistics")
    text = folder / "text.txt"
    text.write_text("\n".join(CORPUS) * 3)
    path = folder / "tiny.stats"
    reallm.calibrate(tiny_llama, output=path, text=text, samples=12, window=12)
    return path


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the matrices that this process codes."""
    shapes: list[tuple[int, int]] = []
    real = encode_matrix

    def counting(plan: Any, weight: Any, **rest: Any) -> Any:
        shapes.append(tuple(weight.shape))
        return real(plan, weight, **rest)

    monkeypatch.setattr(coder, "encode_matrix", counting)
    return shapes
