"""A small archive, a text, and an adapter tuned on it."""

from __future__ import annotations

from pathlib import Path

import pytest

import reallm_compiler as reallm
from reallm_compiler.finetune import finetune

OPTIONS = {
    "window": 16,
    "held_out": 2,
    "block": {"lr": 1e-2, "batch": 4, "epochs": 3, "patience": 2},
    "e2e": {"lr": 1e-2, "batch": 2, "accumulation": 2, "steps": 4, "checks": 2},
}


@pytest.fixture(scope="session")
def options() -> dict:
    return OPTIONS


@pytest.fixture(scope="session")
def base(tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "base.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu", workers=1)
    return path


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "text.txt"
    lines = [f"Anna has {count} red apples and gives one to Tom." for count in range(24)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def adapter(
    base: Path, tiny_llama: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "one.adapter"
    finetune(base, model=tiny_llama, text=[prose], output=path, options=OPTIONS)
    return path
