"""Help texts, the version, and what must not be imported for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from reallm_cli.main import cli

ROOT = Path(__file__).parents[2]


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())


def test_all_commands_of_the_design_are_there():
    assert {path[0] for path in ALL} == {
        "compile", "budget", "inspect", "verify", "reconstruct", "eval", "recipes", "demo",
        "decoder", "survey", "finetune", "adapter", "calibrate", "allocate", "export", "serve",
        "report", "diff",
    }  # fmt: skip
    assert {path[1] for path in ALL if len(path) == 2} == {
        "list", "show", "schema", "export", "import",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_each_help_has_an_example_of_itself(run, path, option):
    result = run(*path, option)
    assert result.code == 0
    assert result.err == ""
    _, _, examples = result.out.partition("\nExamples:\n")
    assert f"  reallm {' '.join(path)}" in examples
    assert max(map(len, result.out.splitlines())) <= 100


def test_without_words_the_help_is_shown(run):
    assert run().out == run("--help").out
    assert "Examples:" in run().out


def test_help_lists_commands_in_the_order_of_use(run):
    lines = run("--help").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["compile", "budget", "inspect"]


def test_version(run):
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("reallm ")


def quiet_args(kind: str, recipe: Path, model: Path, archive: Path) -> list[str]:
    return {
        "help": ["--help"],
        "recipes list": ["recipes", "list"],
        "recipes show": ["recipes", "show", "paper-3bit"],
        "recipes schema": ["recipes", "schema"],
        "budget": ["budget", str(recipe), "--model", str(model)],
        "budget of an archive": ["budget", str(archive)],
        "inspect": ["inspect", str(archive)],
        "verify --quick": ["verify", "--quick", str(archive)],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "help",
        "recipes list",
        "recipes show",
        "recipes schema",
        "budget",
        "budget of an archive",
        "inspect",
        "verify --quick",
    ],
)
def test_no_torch_where_no_weight_is_read(kind, tiny_recipe, tiny_llama, archive):
    args = quiet_args(kind, tiny_recipe, tiny_llama, archive)
    program = (
        "import sys; from reallm_cli.main import main; code = main(sys.argv[1:]); "
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded: {loaded}' if loaded else code)"
    )
    paths = [str(ROOT), str(ROOT / "formats"), str(ROOT / "cli")]
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
