"""Systems that lack what Linux has: macOS falls back, Windows is refused in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import reallm_compiler as reallm
from reallm_cli.main import main
from reallm_compiler import system
from reallm_compiler.errors import OutputError
from reallm_compiler.publish import new_file
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs.stop import block_signals
from reallm_formats import system as files


def output_of(script: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_windows_is_refused_at_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["recipes", "list"]) == 11
    err = capsys.readouterr().err
    assert "does not run on Windows" in err
    assert "WSL 2" in err


def test_windows_is_refused_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(system.UnsupportedSystemError, match="does not run on Windows"):
        _ = reallm.compile


def test_a_compile_without_what_linux_alone_has(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in [
        (os, "sched_getaffinity"),
        (os, "posix_fallocate"),
        (os, "fdatasync"),
        (signal, "pthread_sigmask"),
    ]:
        monkeypatch.delattr(module, name)
    monkeypatch.setattr(system, "resource", None)
    monkeypatch.setattr(system, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(system, "PROC", tmp_path / "none")
    with block_signals():
        pass
    path = tmp_path / "o.reallm"
    reallm.compile("rtn-4bit", model=tiny_llama, output=path, device="cpu")
    assert verify(path) == []
    assert system.free_memory() is None
    assert system.peak_memory() is None
    assert system.cores() == os.cpu_count()


def test_peak_memory_is_that_of_the_program_alone() -> None:
    held = bytearray(os.urandom(1 << 20)) * 200
    script = "from reallm_compiler.system import peak_memory; print(peak_memory())"
    own = system.peak_memory()
    assert own is not None
    assert 0 < int(output_of(script)) < len(held) <= own


def test_flags_that_are_not_there() -> None:
    script = (
        "import os; del os.O_CLOEXEC, os.O_NONBLOCK\n"
        "from reallm_formats import system, Archive, FormatError\n"
        "try: Archive.open('/')\n"
        "except FormatError as error: print(error.message, system.CLOEXEC, system.NONBLOCK)"
    )
    assert output_of(script).strip() == "this is a folder, not a file 0 0"


@pytest.mark.parametrize("kind", ["no locks at all", "a file system without locks"])
def test_without_locks_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    fcntl = SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(files, "fcntl", None if kind == "no locks at all" else fcntl)
    with pytest.raises(OutputError, match="cannot lock"), new_file(tmp_path / "o", force=False):
        pass
    assert not list(tmp_path.iterdir())


def test_macos_forces_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fcntl = SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda descriptor, what: asked.append(what))
    monkeypatch.setattr(files, "fcntl", fcntl)
    files.sync_path(tmp_path)
    assert asked == [51]
