"""Worker processes: they never run the caller's script again, and a lost one is no hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import reallm_compiler as reallm
from reallm_compiler.errors import CompileError
from reallm_compiler.runs import pool as pool_module

SCRIPT = """
import reallm_compiler as reallm
print("began")
_ = reallm.compile({recipe!r}, model={model!r}, output={output!r}, workers=2, device="cpu")
print("done")
"""
SECONDS = 240.0
INT = signal.SIGINT


@pytest.mark.parametrize("way", ["script", "interactive"])
def test_a_script_without_a_main_guard(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, reference: bytes, way: str
) -> None:
    output = tmp_path / "o.reallm"
    text = SCRIPT.format(recipe=str(tiny_recipe), model=str(tiny_llama), output=str(output))
    script = tmp_path / "script.py"
    script.write_text(text)
    # A file that would stand in for the standard library's in workers that look beside the script.
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong pickle')")
    args = [str(script)] if way == "script" else ["-i"]
    done = subprocess.run(
        [sys.executable, "-P", *args],
        cwd=tmp_path,
        input=None if way == "script" else text,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["began", "done"]
    assert output.read_bytes() == reference


def test_a_worker_that_cannot_start_is_no_hang(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "START", "import sys; sys.exit(5)")
    with pytest.raises(CompileError, match="a worker process died") as caught:
        reallm.compile(tiny_recipe, model=tiny_llama, output=tmp_path / "o", workers=2)
    assert "code 5" in str(caught.value.note)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(CompileError, match="cannot start a worker process"):
        reallm.compile(tiny_recipe, model=tiny_llama, output=tmp_path / "o", workers=2)


def test_a_signal_meets_a_worker_that_reads_nothing(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that hang at their start: SIGINT ends the compile all the same."""
    monkeypatch.setattr(pool_module, "START", "import time; time.sleep(600)")
    monkeypatch.setattr(pool_module.Worker, "begin", lambda self, job: os.kill(os.getpid(), INT))
    with pytest.raises(CompileError, match="stopped: the finished matrices are kept"):
        reallm.compile(tiny_recipe, model=tiny_llama, output=tmp_path / "o", workers=2)
