"""The command line as a function, and an archive to try it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reallm_cli.main import main


@dataclass(frozen=True)
class Result:
    """How a run of the command line ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line with these words."""

    def call(*args: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def archive(tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the tiny model; tests must not change it."""
    path = tmp_path_factory.mktemp("archives") / "tiny.reallm"
    code = main(
        ["compile", str(tiny_recipe), "--model", str(tiny_llama), "-o", str(path), "--workers", "1"]
    )
    assert code == 0
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few hundred tokens in two stories."""
    path = tmp_path_factory.mktemp("texts") / "held.txt"
    story = (
        "Anna has three apples and gives one to Tom. They walk along the river.\n"
        "How many apples does Anna have now? Two.\n"
    )
    path.write_text("\n".join([story] * 12))
    return path
