"""What the container asks of the system, where it is there and where it is not."""

import importlib
import os
import sys
from types import SimpleNamespace

import pytest

from reallm_formats import system


def test_a_lock_has_one_holder(tmp_path):
    path = tmp_path / "locked"
    with path.open("wb") as mine, path.open("wb") as other:
        assert system.lock(mine.fileno())
        assert not system.lock(other.fileno())
    with path.open("wb") as again:
        assert system.lock(again.fileno())


def test_without_the_module_of_locks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    try:
        importlib.reload(system)
        assert system.fcntl is None
        with (tmp_path / "file").open("wb") as file:
            system.sync(file.fileno())
            with pytest.raises(OSError, match="no file locks"):
                system.lock(file.fileno())
    finally:
        monkeypatch.undo()
        importlib.reload(system)


@pytest.mark.parametrize("works", [True, False], ids=["macOS", "a file system that cannot"])
def test_what_forces_the_drive(tmp_path, monkeypatch, works):
    asked = []

    def force(descriptor, what):
        asked.append(what)
        if not works:
            raise OSError(45, "Operation not supported")

    monkeypatch.setattr(system, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=force))
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append("fsync"))
    system.sync_path(tmp_path)
    assert asked == ([51] if works else [51, "fsync"])
