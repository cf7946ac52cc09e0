"""Outputs appear whole or not at all, and nothing that belongs to a user is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm_compiler.errors import OutputError
from reallm_compiler.publish import (
    LIST,
    locked_output,
    new_file,
    new_folder,
    refuse_inputs,
    whole_file,
)
from reallm_formats.v1 import MAGIC


class Stopped(Exception):  # noqa: N818 - it stands for a kill, not an error
    pass


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fill(path: Path, text: str = "a", *, force: bool = False) -> None:
    with new_folder(path, force=force) as folder:
        (folder / "config.json").write_text(text)
        (folder / "templates").mkdir()
        (folder / "templates" / "chat.jinja").write_text(text)


def killed(path: Path, moment: int, *, force: bool) -> bool:
    """Whether a process that makes the folder was killed, before its call of this number."""
    pid = os.fork()
    if pid == 0:
        calls = [0]

        def dying(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls[0] += 1
                if calls[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return wrapped

        for name in ("mkdir", "replace", "fsync", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        fill(path, "new", force=force)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("before", [False, True], ids=["new", "replacing"])
def test_a_folder_survives_a_kill_at_every_step(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "model"
    kept = 0
    for moment in range(1, 60):
        shutil.rmtree(path, ignore_errors=True)
        if before:
            fill(path, "old")
        if not killed(path, moment, force=before):
            break
        if path.exists():
            found = {(path / name).read_text() for name in ("config.json", "templates/chat.jinja")}
            assert found in ({"old"}, {"new"})
        # Whoever comes next puts back what stood there, and clears what is left.
        kept += path.exists()
        with contextlib.suppress(OutputError):
            fill(path, "next")
        assert (path / "config.json").read_text() in (("old", "new") if before else ("new", "next"))
        assert names(tmp_path) == ["model"]
    assert moment > 10
    assert kept


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_nothing(tmp_path: Path, kind: str) -> None:
    new = new_file if kind == "file" else new_folder

    def fail(error: Exception) -> None:
        with new(tmp_path / "o", force=False) as partial:
            (partial if kind == "file" else partial / "x").write_text("half")
            raise error

    with pytest.raises(Stopped):
        fail(Stopped())
    assert names(tmp_path) == []
    with pytest.raises(OutputError, match="cannot write: No space left"):
        fail(OSError(28, "No space left on device"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_writers_of_one_output(tmp_path: Path, kind: str) -> None:
    new = new_file if kind == "file" else new_folder
    path = tmp_path / "o"
    with new(path, force=False) as partial:
        (partial if kind == "file" else partial / "x").write_text("first")
        with pytest.raises(OutputError, match="another run"), new(path, force=True):
            pass
    assert names(tmp_path) == ["o"]


def test_a_file_takes_what_a_killed_run_has_left(tmp_path: Path) -> None:
    path = tmp_path / "o.reallm"
    (tmp_path / "o.reallm.partial").write_text("torn")
    (tmp_path / "o.reallm.journal").touch()
    with new_file(path, force=False) as partial:
        partial.write_text("whole")
    assert names(tmp_path) == ["o.reallm"]
    assert path.read_text() == "whole"


def test_an_interrupted_compile_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "o.journal").write_text('00000000 {"identity": {}}\n')
    (tmp_path / "o.partial").write_text("hours of work")
    with (
        pytest.raises(OutputError, match="can still be resumed"),
        new_file(tmp_path / "o", force=True),
    ):
        pass
    assert names(tmp_path) == ["o.journal", "o.partial"]


def test_a_folder_that_reallm_wrote_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, "old")
    with pytest.raises(OutputError, match="exists already"):
        fill(path, "new")
    fill(path, "new", force=True)
    assert (path / "config.json").read_text() == "new"
    assert names(path) == [LIST, "config.json", "templates"]
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", force=True)
    (tmp_path / "link").symlink_to(path)
    fill(tmp_path / "link", "linked", force=True)
    assert (path / "config.json").read_text() == "linked"
    assert (tmp_path / "link").is_symlink()
    # Time goes by, and a file that was deleted is no reason to keep the rest.
    (path / "config.json").unlink()
    fill(path, "new", force=True)


def edited(folder: Path) -> None:
    (folder / "config.json").write_text("b")


def replaced(folder: Path) -> None:
    mine = folder.parent / "mine"
    mine.write_text("b")
    os.utime(mine, (1, 1))
    os.replace(mine, folder / "config.json")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda folder: (folder / "templates" / "own.jinja").write_text("mine"), "own.jinja"),
        (lambda folder: (folder / "checkpoint-1").mkdir(), "checkpoint-1"),
        (lambda folder: (folder / ".git").mkdir(), ".git"),
        (edited, "config.json"),
        (replaced, "config.json"),
        (lambda folder: (folder / LIST).unlink(), "config.json"),
        (lambda folder: (folder / LIST).write_text("[]"), LIST),
    ],
    ids=["file", "inner", "folder", "hidden", "edited", "moved", "no list", "broken list"],
)
def test_what_somebody_else_wrote_is_kept(tmp_path: Path, change: object, name: str) -> None:
    path = tmp_path / "model"
    fill(path)
    time.sleep(0.02)  # a file system counts times in steps
    assert callable(change)
    change(path)
    before = {entry: entry.lstat().st_mtime_ns for entry in path.rglob("*")}
    with pytest.raises(OutputError, match="reallm did not write") as caught:
        fill(path, "new", force=True)
    assert name in caught.value.message
    assert {entry: entry.lstat().st_mtime_ns for entry in path.rglob("*")} == before
    assert names(tmp_path) == ["model"]


def test_a_folder_under_the_name_of_the_partial_one_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "model.partial"
    mine.mkdir()
    (mine / "thesis").touch()
    with pytest.raises(OutputError, match="a folder stands where"):
        fill(tmp_path / "model")
    assert names(mine) == ["thesis"]
    with (
        pytest.raises(OutputError, match="a folder stands where"),
        locked_output(tmp_path / "model"),
        whole_file(tmp_path / "model", force=False),
    ):
        pass


def test_an_output_is_no_input(tmp_path: Path) -> None:
    archive, model = tmp_path / "a.reallm", tmp_path / "model"
    archive.write_bytes(MAGIC)
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    (model / "old.reallm").write_bytes(MAGIC)
    refuse_inputs(tmp_path / "new.reallm", archive, model, None)
    refuse_inputs(model / "old.reallm", model)
    for path, given in ((archive, archive), (model / "model.safetensors", model)):
        with pytest.raises(OutputError, match="would replace an input"):
            refuse_inputs(path, given)


def test_the_list_says_what_was_written(tmp_path: Path) -> None:
    fill(tmp_path / "model")
    found = json.loads((tmp_path / "model" / LIST).read_text())
    assert found == {
        "written by": "reallm",
        "files": {"config.json": 1, "templates/chat.jinja": 1},
    }
