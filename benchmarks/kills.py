"""Kill a compile at every phase, let it go on, and compare the bytes with an undisturbed run.

    python benchmarks/kills.py --times 5 --workers 1 2          the full study
    python benchmarks/kills.py --times 1 --workers 1            a draw

Phases: `reserve` (before the file is reserved), `slot` (half a section written), `journal` (the
sections are on disk, their record is not), `manifest` (manifest written, header not), `rename`
(just before), `renamed` (just after), and `worker` (one worker process dies alone, the compile
reports it). Every kill is SIGKILL from inside, at an exact place, so each phase is truly met; the
k-th kill of a phase strikes at its k-th occasion. Prints one line per phase and exits with 1 if
any resumed archive differs.

The model is a random Llama made here. The kills strike child processes of this one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import reallm_compiler as reallm
from reallm_compiler.errors import CompileError
from reallm_compiler.execute import output as output_room
from reallm_compiler.execute.journal import Journal
from reallm_formats import Writer
from reallm_formats import writer as writer_module

RECIPE = {
    "reallm": 1,
    "seed": 3,
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2},
        "scales": {"kind": "absmax", "bits": 8},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
        "share": "all",
        "dora": True,
    },
}
PHASES = ("reserve", "slot", "journal", "manifest", "rename", "renamed")


def make_model(folder: Path) -> Path:
    """A random Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    original: Callable[..., Any], number: int, *, after: bool = False
) -> Callable[..., Any]:
    """`original`, but the process dies at the call of this number, before it or after it."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            die()
        result = original(*args, **kwargs)
        if calls[0] == number:
            die()
        return result

    return wrapped


def set_trap(phase: str, number: int) -> None:
    """Make this process die at the given occasion of a phase."""
    if phase == "reserve":
        Writer.create = at_call(Writer.create, 1)
    elif phase == "slot":
        # Sections are written in chunks: with tiny ones a section is torn in its middle.
        writer_module.CHUNK = 7
        writer_module._write_all = at_call(writer_module._write_all, 20 * number)
    elif phase == "journal":
        Journal.append = at_call(Journal.append, number + 1)
    elif phase == "manifest":
        writer_module.encode_header = at_call(writer_module.encode_header, 1)
    elif phase == "rename":
        os.replace = at_call(os.replace, 1)
    elif phase == "renamed":
        output_room.sync_folder = at_call(output_room.sync_folder, 1, after=True)


# A worker process imports this file again before it starts work, and finds its trap here.
if __name__ == "__mp_main__" and "KILL_WORKER" in os.environ:
    from reallm_compiler.execute.encode import Encoder

    Encoder.run = at_call(Encoder.run, int(os.environ["KILL_WORKER"]))


def child(model: Path, output: Path, workers: int, phase: str | None, number: int) -> int:
    """Compile in a child process that may be killed; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            if phase is not None:
                set_trap(phase, number)
            reallm.compile(RECIPE, model=model, output=output, device="cpu", workers=workers)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def study(model: Path, folder: Path, phase: str, times: int, workers: int, right: str) -> bool:
    """Kill `times` times in one phase, finish, compare.

    One output is killed again and again; after the rename there is nothing left to kill, so
    there each kill has an output of its own.
    """
    rounds = [range(1, times + 1)]
    if phase == "renamed":
        rounds = [range(1, 2)] * times
    killed = 0
    good = True
    for place, numbers in enumerate(rounds):
        output = folder / f"{phase}-{workers}-{place}.reallm"
        for number in numbers:
            status = child(model, output, workers, phase, number)
            killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        status = child(model, output, workers, None, 0)
        good &= status == 0 and digest(output) == right
        left = [path.name for path in folder.iterdir() if path.name.startswith(output.name + ".")]
        good &= not left
    good &= killed == times
    told = "same bytes" if good else "FAILED"
    print(f"{phase:9} workers {workers}  killed {killed}  {told}", flush=True)
    return good


def worker_alone(model: Path, folder: Path, times: int, right: str) -> bool:
    """A worker dies alone: the compile says so, keeps what is done, and goes on later."""
    output = folder / "worker.reallm"
    told = 0
    for number in range(1, times + 1):
        os.environ["KILL_WORKER"] = str(number + 1)
        try:
            reallm.compile(RECIPE, model=model, output=output, device="cpu", workers=2)
        except CompileError as error:
            told += "worker process died" in error.message
        finally:
            del os.environ["KILL_WORKER"]
        if output.exists():
            break
    if not output.exists():
        reallm.compile(RECIPE, model=model, output=output, device="cpu", workers=2)
    same = digest(output) == right
    print(f"worker    workers 2  died {told}  {'same bytes' if same else 'OTHER BYTES'}")
    return same and told > 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--phase", nargs="+", default=[*PHASES, "worker"])
    given = parser.parse_args()
    torch.set_num_threads(1)  # a fork must not meet threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        reallm.compile(RECIPE, model=model, output=folder / "right.reallm", device="cpu")
        right = digest(folder / "right.reallm")
        good = True
        for workers in given.workers:
            for phase in PHASES:
                if phase in given.phase:
                    good &= study(model, folder, phase, given.times, workers, right)
        if "worker" in given.phase and max(given.workers) > 1:
            good &= worker_alone(model, folder, given.times, right)
    print("all archives equal" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
