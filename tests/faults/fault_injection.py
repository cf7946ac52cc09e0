"""A bad day, case by case, through the command line: what breaks is told, nothing is lost.

    python tests/faults/fault_injection.py              all cases
    python tests/faults/fault_injection.py disk signal  cases whose names hold one of these words

Each case runs `reallm` as a process of its own and holds it to one law: the named exit code, the
place and the way out on stderr, no traceback, a finished file of the same name untouched, and
what was done kept, so that the same command goes on and ends with the bytes of a quiet day.
Prints a line per case; ends with 1 if one fails. Some cases mount a small tmpfs and so need root:
without it they are skipped, and say so.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PATIENCE = 300.0
"""Seconds after which a process is given up, on a machine that may be busy."""

SLOW = {
    "reallm": 1,
    "defaults": {"scales": {"kind": "rms"}, "quantizer": {"kind": "vq", "bits": 2, "dim": 4}},
}
QUICK = {
    "reallm": 1,
    "defaults": {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 4}},
}
PRECIOUS = b"a finished archive of this name"


class SkippedError(Exception):
    """A case cannot run here; the message says why."""


@dataclass(frozen=True)
class Result:
    """How a process ended."""

    code: int
    out: str
    err: str


class Bench:
    """A folder with two checkpoints and the command line.

    Attributes:
        slow: 24 matrices in two files, with a recipe that takes a moment for each.
        quick: 3 matrices, with a recipe that takes none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slow = folder / "slow"
        self.quick = folder / "quick"
        self.recipes = {"slow": folder / "slow.yaml", "quick": folder / "quick.yaml"}
        self.recipes["slow"].write_text(json.dumps(SLOW))
        self.recipes["quick"].write_text(json.dumps(QUICK))
        make_checkpoint(self.slow, matrices=24, shape=(192, 256), files=2)
        make_checkpoint(self.quick, matrices=3, shape=(64, 96), files=1)
        self._quiet: dict[str, bytes] = {}

    def words(self, name: str, output: Path, *more: str) -> list[str]:
        """The command that compiles one of the checkpoints."""
        model = self.slow if name == "slow" else self.quick
        words = ["compile", str(self.recipes[name]), "--model", str(model), "-o", str(output)]
        return [*words, "--device", "cpu", "--workers", "1", *more]

    def start(
        self, words: list[str], before: Callable[[], None] | None = None, first: str = ""
    ) -> subprocess.Popen[str]:
        """A running command line, the head of a process group; `first` is code that it runs."""
        return subprocess.Popen(
            [sys.executable, "-c", f"{first}\nfrom reallm_cli.main import run; run()", *words],
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

    def run(self, words: list[str], before: Callable[[], None] | None = None) -> Result:
        """A command line that is waited for."""
        return ended(self.start(words, before))

    def quiet(self, name: str) -> bytes:
        """The archive of a quiet day."""
        if name not in self._quiet:
            output = self.folder / f"quiet-{name}.reallm"
            finished(self.run(self.words(name, output)))
            self._quiet[name] = output.read_bytes()
        return self._quiet[name]

    def output(self, name: str) -> Path:
        """A path for an archive that no other case uses."""
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        return folder / "out.reallm"


def make_checkpoint(folder: Path, *, matrices: int, shape: tuple[int, int], files: int) -> None:
    """Random matrices in bare safetensors files."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for file in range(files):
        tensors = {
            f"layers.{place}.w.weight": draw.standard_normal(shape, dtype=np.float32)
            for place in range(file, matrices, files)
        }
        save_file(tensors, folder / f"part{file}.safetensors")


def ended(process: subprocess.Popen[str]) -> Result:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {PATIENCE} s: {err}") from None
    return Result(process.returncode, out, err)


def finished(result: Result) -> Result:
    assert result.code == 0, result
    return result


def refused(result: Result, code: int, *words: str) -> Result:
    """The law of a refusal: its code, its words, nothing on stdout, no traceback."""
    assert result.code == code, result
    for word in words:
        assert word in result.err, (word, result.err)
    assert "Traceback" not in result.err, result.err
    assert not result.out, result.out
    return result


def journal_of(output: Path) -> Path:
    return output.with_name(output.name + ".journal")


def steps_done(output: Path) -> int:
    """Finished steps by the journal, whose first line is no step."""
    try:
        return max(0, journal_of(output).read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def wait_for_steps(process: subprocess.Popen[str], output: Path, steps: int) -> int:
    """Wait until so many steps are finished; how many there are then."""
    deadline = time.monotonic() + PATIENCE
    while (done := steps_done(output)) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)
    return done


def goes_on(bench: Bench, output: Path, *more: str) -> None:
    """The same command goes on with what was kept and ends with the bytes of a quiet day."""
    words = bench.words("slow", output, "--resume", "required", *more)
    done = steps_done(output)
    result = finished(bench.run(words))
    assert not done or "are done" in result.err, result.err
    assert output.read_bytes() == bench.quiet("slow")
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]


CASES: dict[str, Callable[[Bench, str], None]] = {}


def case(name: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a case under a name; settings are handed to it."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        CASES[name] = lambda bench, own: function(bench, own, **settings)
        return function

    return register


@case("SIGINT, 1 worker", number=signal.SIGINT, workers=1)
@case("SIGINT, 2 workers", number=signal.SIGINT, workers=2)
@case("SIGTERM, 1 worker", number=signal.SIGTERM, workers=1)
@case("SIGTERM, 2 workers", number=signal.SIGTERM, workers=2)
@case("SIGINT to the group, 1 worker", number=signal.SIGINT, workers=1, group=True)
@case("SIGINT to the group, 2 workers", number=signal.SIGINT, workers=2, group=True)
@case("SIGTERM to the group, 2 workers", number=signal.SIGTERM, workers=2, group=True)
def stopped(
    bench: Bench, name: str, *, number: signal.Signals, workers: int, group: bool = False
) -> None:
    """A signal ends the run within a matrix, and it says how to go on.

    A terminal's Ctrl-C and batch systems send it to the group: to the workers too.
    """
    output = bench.output(name)
    process = bench.start(bench.words("slow", output, "--workers", str(workers)))
    done = wait_for_steps(process, output, 3)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    refused(ended(process), 130, "finished matrices are kept", "same command again")
    # One for each worker under way, and one for each that ended between our look and the signal.
    assert steps_done(output) <= done + 2 * workers, (done, steps_done(output))
    assert not output.exists()
    goes_on(bench, output)


@case("SIGINT to the group while workers start", number=signal.SIGINT, later=0.0)
@case("SIGTERM to the group while workers start", number=signal.SIGTERM, later=0.0)
@case("SIGINT to the group a second later", number=signal.SIGINT, later=1.0)
@case("SIGTERM to the group a second later", number=signal.SIGTERM, later=1.0)
def stopped_at_the_start(bench: Bench, name: str, *, number: signal.Signals, later: float) -> None:
    """The signal meets workers that are not ready, from their first moment on."""
    output = bench.output(name)
    process = bench.start(bench.words("slow", output, "--workers", "2"))
    wait_for_workers(process)
    time.sleep(later)
    os.killpg(process.pid, number)
    refused(ended(process), 130, "finished matrices are kept", "same command again")
    goes_on(bench, output)


STRIKE = """
import os, signal
import reallm_compiler.{module} as room
def struck(*args, was=room.{name}, **named):
    os.kill(os.getpid(), {number})
    return was(*args, **named)
room.{name} = struck
"""
"""Makes the process signal itself when it calls a function."""


@case("SIGINT while planning", at="execute.run.build", number=signal.SIGINT, kept=False)
@case("SIGTERM while planning", at="execute.run.build", number=signal.SIGTERM, kept=False)
@case(
    "SIGTERM before the reservation",
    at="execute.archive.check_disk",
    number=signal.SIGTERM,
    kept=False,
)
@case("SIGTERM after the reservation", at="execute.archive.start", number=signal.SIGTERM, kept=True)
def stopped_before_the_first(
    bench: Bench, name: str, *, at: str, number: signal.Signals, kept: bool
) -> None:
    """Before the first matrix: how to go on is told, and what is kept is what is left."""
    output = bench.output(name)
    process = bench.start(bench.words("slow", output), first=strike(at, number))
    told = "finished matrices are kept" if kept else "nothing was written"
    refused(ended(process), 130, told, "same command again")
    if kept:
        goes_on(bench, output)
    assert kept or not list(output.parent.iterdir())


@case("SIGTERM while slots are read again")
def stopped_in_resuming(bench: Bench, name: str) -> None:
    output = bench.output(name)
    process = bench.start(bench.words("slow", output))
    wait_for_steps(process, output, 2)
    process.kill()
    ended(process)
    first = strike("runs.resume.intact_tasks", signal.SIGTERM)
    again = bench.start(bench.words("slow", output), first=first)
    refused(ended(again), 130, "finished matrices are kept", "same command again")
    goes_on(bench, output)


@case("SIGTERM while finishing", at="execute.archive._finish")
@case("SIGTERM after the rename", at="publish.sync_path")
def stopped_too_late(bench: Bench, name: str, *, at: str) -> None:
    """All matrices are done: the run ends well."""
    output = bench.output(name)
    process = bench.start(bench.words("slow", output), first=strike(at, signal.SIGTERM))
    finished(ended(process))
    assert output.read_bytes() == bench.quiet("slow")
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]


def strike(at: str, number: signal.Signals) -> str:
    module, _, name = at.rpartition(".")
    return STRIKE.format(module=module, name=name, number=int(number))


@case("the compile killed, its workers left", steps=2)
@case("the compile killed while workers start", steps=0)
def compile_killed(bench: Bench, name: str, *, steps: int) -> None:
    """Workers end with their compile, although they ignore signals."""
    output = bench.output(name)
    process = bench.start(bench.words("slow", output, "--workers", "2"))
    wait_for_steps(process, output, steps)
    workers = wait_for_workers(process)
    process.kill()
    ended(process)  # when the last one has closed its stderr
    assert not any(Path(f"/proc/{pid}").exists() and is_worker(pid) for pid in workers)
    goes_on(bench, output, "--workers", "2")


@case("two compiles of one output")
def two_at_once(bench: Bench, name: str) -> None:
    output = bench.output(name)
    first = bench.start(bench.words("slow", output))
    wait_for_steps(first, output, 1)
    first.send_signal(signal.SIGSTOP)  # it holds still until the second has been refused
    for resume in ("auto", "never"):
        second = bench.run(bench.words("slow", output, "--resume", resume, "--force"))
        refused(second, 6, "another run is writing this output", "wait for it")
    first.send_signal(signal.SIGCONT)
    finished(ended(first))
    assert output.read_bytes() == bench.quiet("slow")


@case("a worker killed alone")
def worker_killed(bench: Bench, name: str) -> None:
    output = bench.output(name)
    process = bench.start(bench.words("slow", output, "--workers", "2"))
    wait_for_steps(process, output, 2)
    workers = [pid for pid in children_of(process.pid) if is_worker(pid)]
    assert len(workers) == 2, workers
    os.kill(workers[0], signal.SIGKILL)
    refused(ended(process), 7, "a worker process died", "same command again")
    assert steps_done(output) >= 2
    goes_on(bench, output, "--workers", "2")


def wait_for_workers(process: subprocess.Popen[str]) -> list[int]:
    """Wait until the compile has a worker; all that there are then."""
    deadline = time.monotonic() + PATIENCE
    while not (workers := [pid for pid in children_of(process.pid) if is_worker(pid)]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no workers"
        time.sleep(0.005)
    return workers


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid: int) -> bool:
    return b"reallm_compiler.runs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


@case("disk full before the start")
def disk_full(bench: Bench, name: str) -> None:
    """Known in the first second, by the exact length."""
    size = len(bench.quiet("slow"))
    with small_disk(bench.folder / "full", size // 2) as folder:
        output = folder / "out.reallm"
        output.write_bytes(PRECIOUS)
        words = bench.words("slow", output, "--force")
        refused(bench.run(words), 7, "disk is too small", f"{size:,}", str(folder))
        assert output.read_bytes() == PRECIOUS
        assert [entry.name for entry in folder.iterdir()] == [output.name]


@case("disk full in the journal")
def journal_full(bench: Bench, name: str) -> None:
    """Slots are reserved; only the journal can still meet a full disk, and what it holds stays."""
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-len(bench.quiet("slow")) // page)
    with small_disk(bench.folder / "tight", (pages + 1) * page) as folder:
        output = folder / "out.reallm"
        result = bench.run(bench.words("slow", output))
        refused(result, 7, "journal", "No space left", "make room", "same command again")
        assert 3 <= steps_done(output) < 24
        remount(folder, (pages + 64) * page)
        goes_on(bench, output)


@case("file too large for the system")
def file_too_large(bench: Bench, name: str) -> None:
    output = bench.output(name)
    size = len(bench.quiet("slow"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    result = bench.run(bench.words("slow", output), limit)
    refused(result, 7, f"cannot reserve {size:,} bytes", "File too large", str(output.parent))
    assert not list(output.parent.iterdir())


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes."""
    if os.geteuid() != 0:
        raise SkippedError("mounting a tmpfs needs root")
    folder.mkdir()
    mounted = mount(folder, f"size={size}", 0)
    if mounted:
        raise SkippedError(f"this machine mounts no tmpfs: {os.strerror(mounted)}")
    try:
        yield folder
    finally:
        libc().umount2(str(folder).encode(), 2)


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, options: str, flags: int) -> int:
    """0, or the error number."""
    done = libc().mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options.encode())
    return 0 if done == 0 else ctypes.get_errno()


MS_RDONLY, MS_REMOUNT = 1, 32


def remount(folder: Path, size: int) -> None:
    assert mount(folder, f"size={size}", MS_REMOUNT) == 0


def without_override() -> None:
    """Root loses the right to write where permissions say no."""
    bounding_drop, dac_override = 24, 1
    libc().prctl(bounding_drop, dac_override, 0, 0, 0)


@case("read-only folder", system=False)
@case("read-only file system", system=True)
def read_only(bench: Bench, name: str, *, system: bool) -> None:
    if system:
        with small_disk(bench.folder / "sealed", 1 << 20) as folder:
            (folder / "out.reallm").write_bytes(PRECIOUS)
            assert mount(folder, "size=1m", MS_REMOUNT | MS_RDONLY) == 0
            words = bench.words("quick", folder / "out.reallm", "--force")
            refused(bench.run(words), 6, "read-only", str(folder))
            assert (folder / "out.reallm").read_bytes() == PRECIOUS
        return
    output = bench.output(name)
    output.write_bytes(PRECIOUS)
    output.parent.chmod(0o555)
    result = bench.run(bench.words("quick", output, "--force"), without_override)
    refused(result, 6, "read-only", str(output.parent))
    assert output.read_bytes() == PRECIOUS
    output.parent.chmod(0o755)


@case("a shard vanishes", cut=False)
@case("a shard is cut short", cut=True)
def shard_goes(bench: Bench, name: str, *, cut: bool) -> None:
    """A shard goes while the run is on; put back as it was, the run goes on."""
    output = bench.output(name)
    shard = bench.slow / "part1.safetensors"
    aside = bench.folder / "aside"
    process = bench.start(bench.words("slow", output))
    wait_for_steps(process, output, 2)
    os.replace(shard, aside)
    if cut:
        shard.write_bytes(aside.read_bytes()[:50_000])
    try:
        result = ended(process)
    finally:
        os.replace(aside, shard)
    words = ("ends", "before the end of") if cut else ("No such file", "put the file back")
    refused(result, 4, *words, str(shard))
    assert steps_done(output) >= 2
    goes_on(bench, output)


@case("a NaN", value=float("nan"))
@case("an infinity", value=float("inf"))
def no_number(bench: Bench, name: str, *, value: float) -> None:
    weight = np.ones((40, 64), np.float32)
    weight[7, 11] = value
    result, output = compiled(bench, name, weight)
    refused(result, 9, "row 7, column 11", "only.w", "keep")
    assert output.read_bytes() == PRECIOUS


@case("a matrix of zeros", weight=np.zeros((40, 64), np.float32))
@case("one single weight", weight=np.full((1, 1), -0.75, np.float32))
@case("a single row", weight=np.linspace(-1, 1, 64, dtype=np.float32)[None])
@case("a constant row", weight=np.vstack([np.full(64, 0.5), np.sin(np.arange(64))]).astype("f4"))
def defined(bench: Bench, name: str, *, weight: np.ndarray[Any, Any]) -> None:
    """What looks degenerate has a defined result: finite, zeros exact, never a failure."""
    result, output = compiled(bench, name, weight)
    finished(result)
    shown = finished(bench.run(["inspect", str(output), "only.w", "--json"]))
    error = json.loads(shown.out)["relative_error"]
    assert 0 <= error < 0.2, error
    assert weight.any() or error == 0.0


def compiled(bench: Bench, name: str, weight: np.ndarray[Any, Any]) -> tuple[Result, Path]:
    """A compile of one matrix over a finished file."""
    output = bench.output(name)
    output.write_bytes(PRECIOUS)
    model = output.parent / "model"
    model.mkdir()
    save_file({"only.w.weight": weight}, model / "model.safetensors")
    recipe = output.parent / "recipe.yaml"  # a rule, since one row alone is kept by default
    recipe.write_text(json.dumps({**QUICK, "rules": [{"match": "only.w", "set": {"dora": True}}]}))
    words = ["compile", str(recipe), "--model", str(model), "-o", str(output)]
    return bench.run([*words, "--device", "cpu", "--force"]), output


@case("memory too small for the largest matrix")
def little_memory(bench: Bench, name: str) -> None:
    output = bench.output(name)
    output.write_bytes(PRECIOUS)
    model = output.parent / "model"
    model.mkdir()
    header = {"big.w.weight": {"dtype": "BF16", "shape": [8192, 8192], "data_offsets": [0, 2**27]}}
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**27)  # a hole: zeros that take no room
    room = interpreter_bytes() + 600 * 2**20

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (room, room))

    words = ["compile", str(bench.recipes["quick"]), "--model", str(model), "-o", str(output)]
    result = bench.run([*words, "--device", "cpu", "--force"], limit)
    refused(result, 7, "memory is too small", "MiB are needed", "big.w [8192, 8192]")
    assert output.read_bytes() == PRECIOUS


def interpreter_bytes() -> int:
    """Address space of an interpreter with torch."""
    code = "import torch; print(open('/proc/self/statm').read().split()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")


@case("cuda asked for and absent")
def no_cuda(bench: Bench, name: str) -> None:
    output = bench.output(name)
    output.write_bytes(PRECIOUS)
    result = bench.run(bench.words("quick", output, "--force", "--device", "cuda"))
    refused(result, 7, "no usable CUDA device", "the device `cpu`")
    assert output.read_bytes() == PRECIOUS


@case("preflight and time left")
def preflight(bench: Bench, name: str) -> None:
    """Bytes, memory and device before the first matrix; the time left after the first ones."""
    output = bench.output(name)
    ours, theirs = os.openpty()
    words = bench.words("slow", output)
    process = subprocess.Popen(
        [sys.executable, "-c", "from reallm_cli.main import run; run()", *words],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    first = None
    try:
        while part := os.read(ours, 4096):
            seen += part
            if first is None and b"device" in seen:
                first = steps_done(output)
    except OSError:  # a terminal whose other side has gone
        pass
    os.close(ours)
    assert process.wait() == 0
    told = seen.decode(errors="replace")
    size = f"{len(bench.quiet('slow')):,}"
    assert first is not None
    assert first <= 1, first
    for word in ("bytes", "to reserve", "memory  about", "cpu, 1 worker", " left"):
        assert word in told, (word, told)
    assert size in told.replace("_", ","), (size, told)


def main() -> int:
    wanted = sys.argv[1:]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="bad-machine-") as name:
        bench = Bench(Path(name))
        for title, function in CASES.items():
            if wanted and not any(word in title for word in wanted):
                continue
            began = time.monotonic()
            try:
                function(bench, title)
                told = "as promised"
            except SkippedError as reason:
                told = f"skipped: {reason}"
            except AssertionError as error:
                failed += 1
                told = f"FAILED: {error}"
            print(f"{title:42} {time.monotonic() - began:5.1f} s  {told}", flush=True)
        shutil.rmtree(Path(name) / "slow", ignore_errors=True)
    print("FAILED" if failed else "all cases as promised")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
