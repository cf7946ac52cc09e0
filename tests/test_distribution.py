"""The name that pip installs: one constant, one version, and no hint that names a stranger."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from reallm_compiler.distribution import NAME, VERSION, install_command

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHOWN = [
    path
    for pattern in ("*.md", "docs/**/*.md", "**/*.py", "Makefile")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
]


def test_the_name_and_the_version_stand_once() -> None:
    assert PROJECT["name"] == NAME
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert PROJECT["scripts"] == {"reallm": "reallm_cli.main:run"}


def test_every_address_is_one_that_the_citation_names() -> None:
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["urls"]
    assert all(f'url: "{url}"' in cited for url in PROJECT["urls"].values())


def test_the_build_takes_the_version_from_the_code() -> None:
    pytest.importorskip("hatchling")
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    metadata = ProjectMetadata(str(ROOT), PluginManager())
    assert (metadata.name, metadata.version) == (NAME, VERSION)


@pytest.mark.parametrize("extra", ["plots", "tasks", "peft"])
def test_a_hint_names_this_distribution_and_an_extra_that_exists(extra: str) -> None:
    assert install_command(extra) == f"pip install '{NAME}[{extra}]'"
    assert extra in PROJECT["optional-dependencies"]


def test_nothing_tells_to_install_another_project() -> None:
    pattern = re.compile(r"pip install [^\n]*?\breallm(?!-compiler)\b")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SHOWN
        if path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == []
