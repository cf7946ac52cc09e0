"""What several tests of compiles hold their archives against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def compiled(recipe: Any, model: Path, output: Path, **options: Any) -> bytes:
    """The bytes of a compiled archive."""
    reallm.compile(recipe, model=model, output=output, device="cpu", **options)
    return output.read_bytes()
