"""`reallm` run as a process on small checkpoints, so that a test can harm it from outside.

What is held to be true of every fault: the named exit code, what happened and what to do on stderr,
no traceback, nothing on stdout, a finished file of the same name untouched, and what was done kept,
so that the same command goes on and ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

TIMEOUT_S = 300.0
"""When a process is given up, on a machine that may be busy."""

SLOW = {
    "reallm": 1,
    "defaults": {
        "scales": {"kind": "rms"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4, "iterations": 10},
    },
}
QUICK = {
    "reallm": 1,
    "defaults": {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 4}},
}
MATRICES = 24
"""Of the slow checkpoint."""

FINISHED = b"a finished archive of this name"


@dataclass(frozen=True)
class Result:
    """How a process ended."""

    code: int
    out: str
    err: str


class Bench:
    """A folder with two checkpoints, and the command line.

    Attributes:
        slow: `MATRICES` matrices in two files, with a recipe that takes a moment for each.
        quick: 3 matrices, with a recipe that takes none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slow = folder / "slow"
        self.quick = folder / "quick"
        self.recipes = {"slow": folder / "slow.yaml", "quick": folder / "quick.yaml"}
        self.recipes["slow"].write_text(json.dumps(SLOW))
        self.recipes["quick"].write_text(json.dumps(QUICK))
        write_checkpoint(self.slow, matrices=MATRICES, shape=(192, 256), files=2)
        write_checkpoint(self.quick, matrices=3, shape=(64, 96), files=1)
        self._undisturbed: dict[str, bytes] = {}

    def arguments(self, name: str, output: Path, *more: str) -> list[str]:
        """Arguments that compile one of the checkpoints."""
        model = self.slow if name == "slow" else self.quick
        compiled = ["compile", str(self.recipes[name]), "--model", str(model), "-o", str(output)]
        return [*compiled, "--device", "cpu", "--workers", "1", *more]

    def start(
        self, arguments: list[str], before: Callable[[], None] | None = None, first: str = ""
    ) -> subprocess.Popen[str]:
        """A running command line, the head of a process group; `first` is code that it runs."""
        return subprocess.Popen(
            [sys.executable, "-c", f"{first}\nfrom reallm_cli.main import run; run()", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": ":".join(sys.path),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
        )

    def run(self, arguments: list[str], before: Callable[[], None] | None = None) -> Result:
        """A command line that is waited for."""
        return ended(self.start(arguments, before))

    def undisturbed(self, name: str) -> bytes:
        """The archive of a run to which nothing happened."""
        if name not in self._undisturbed:
            output = self.folder / f"undisturbed-{name}.reallm"
            finished(self.run(self.arguments(name, output)))
            self._undisturbed[name] = output.read_bytes()
        return self._undisturbed[name]

    def resumes(self, output: Path, *more: str) -> None:
        """The same command goes on with what was kept and ends with the undisturbed bytes."""
        done = tasks_done(output)
        result = finished(self.run(self.arguments("slow", output, "--resume", "required", *more)))
        assert not done or "are done" in result.err, result.err
        assert output.read_bytes() == self.undisturbed("slow")
        assert [entry.name for entry in output.parent.iterdir()] == [output.name]


def write_checkpoint(folder: Path, *, matrices: int, shape: tuple[int, int], files: int) -> None:
    """Random matrices in bare safetensors files."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for file in range(files):
        tensors = {
            f"layers.{number}.w.weight": draw.standard_normal(shape, dtype=np.float32)
            for number in range(file, matrices, files)
        }
        save_file(tensors, folder / f"part{file}.safetensors")


def ended(process: subprocess.Popen[str]) -> Result:
    """The result of a process that is waited for."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT_S} s: {err}") from None
    return Result(process.returncode, out, err)


def finished(result: Result) -> Result:
    """Holds that a command succeeded."""
    assert result.code == 0, result
    return result


def refused(result: Result, code: int, *texts: str) -> Result:
    """Holds what every refusal keeps: its code, its texts, nothing on stdout, no traceback."""
    assert result.code == code, result
    for text in texts:
        assert text in result.err, (text, result.err)
    assert "Traceback" not in result.err, result.err
    assert not result.out, result.out
    return result


def interrupted(result: Result, state: str = "finished matrices are kept") -> Result:
    """Holds what every interrupted run says."""
    return refused(result, 130, state, "same command again")


def tasks_done(output: Path) -> int:
    """Finished tasks by the journal, whose first line is the identity."""
    try:
        journal = output.with_name(output.name + ".journal").read_bytes()
    except FileNotFoundError:
        return 0
    return max(0, journal.count(b"\n") - 1)


def wait_for_tasks(process: subprocess.Popen[str], output: Path, tasks: int) -> int:
    """Wait until so many tasks are finished; how many there are then."""
    deadline = time.monotonic() + TIMEOUT_S
    while (done := tasks_done(output)) < tasks:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)
    return done


def wait_for_workers(process: subprocess.Popen[str]) -> list[int]:
    """Wait until the compile has a worker; all that there are then."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (workers := workers_of(process)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no workers"
        time.sleep(0.005)
    return workers


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Worker processes of a compile."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if is_worker(pid)]


def is_worker(pid: int) -> bool:
    """Whether a process is a worker."""
    return b"reallm_compiler.runs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


SIGNAL_AT = """
import os, signal
import reallm_compiler.{module} as module
def signalled(*args, was=module.{name}, **named):
    os.kill(os.getpid(), {number})
    return was(*args, **named)
module.{name} = signalled
"""


def signal_at(at: str, number: signal.Signals) -> str:
    """Code that makes the process signal itself when it calls a function."""
    module, _, name = at.rpartition(".")
    return SIGNAL_AT.format(module=module, name=name, number=int(number))


MS_RDONLY, MS_REMOUNT = 1, 32


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes; skips the test where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder.mkdir()
    error = mount(folder, f"size={size}")
    if error:
        pytest.skip(f"this machine mounts no tmpfs: {os.strerror(error)}")
    try:
        yield folder
    finally:
        libc().umount2(str(folder).encode(), 2)


def mount(folder: Path, options: str, flags: int = 0) -> int:
    """Mount a tmpfs: 0, or the error number."""
    done = libc().mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options.encode())
    return 0 if done == 0 else ctypes.get_errno()


def without_override() -> None:
    """Root loses the right to write where permissions say no."""
    bounding_drop, dac_override = 24, 1
    libc().prctl(bounding_drop, dac_override, 0, 0, 0)


def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)
