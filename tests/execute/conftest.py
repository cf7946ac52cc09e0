"""What several tests of compiles hold their archives against."""

from __future__ import annotations

from pathlib import Path

import pytest

import reallm_compiler as reallm


@pytest.fixture(scope="session")
def reference(
    tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The archive of an undisturbed run."""
    path = tmp_path_factory.mktemp("reference") / "out.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu")
    return path.read_bytes()
