"""Kill a compile at every phase, let it go on, and compare the bytes with an undisturbed run.

    python benchmarks/kills.py --times 5 --workers 1 2          the full study
    python benchmarks/kills.py --times 1 --workers 1            a draw

Phases: `reserve` (before the file is reserved), `slot` (half a section written), `journal` (the
sections are on disk, their record is not), `manifest` (manifest written, header not), `rename`
(just before), `renamed` (just after), `worker` (one worker process dies alone, the compile
reports it), and `training` (in the midst of training a matrix's own decoder, or one that a group
shares; with two workers one of them dies). What was killed in a training goes on with the workers
that it had, and ends with two. Every kill is SIGKILL from inside, at an exact place, so each phase
is truly met; the k-th kill of a phase strikes at its k-th occasion. Prints one line per phase and
exits with 1 if any resumed archive differs from one that was never killed, by one worker.

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
from reallm_compiler.execute import training
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
TRAINED = {
    "reallm": 1,
    "seed": 3,
    "defaults": {
        "autoencoder": {
            "kind": "hnerv",
            "patch": 16,
            "latent": [4, 4, 4],
            "width": 4,
            "min_width": 4,
            "kernel_max": 3,
            "encoder_width": 4,
            "epochs": 30,
            "batch": 4,
        },
        "scales": {"kind": "absmax", "block": 16},
        "quantizer": {"kind": "vq", "bits": 3, "dim": 2},
    },
    "rules": [{"match": "*_proj", "except": "*.q_proj", "keep": "source"}],
}
SHARED = {**TRAINED, "defaults": {**TRAINED["defaults"], "share": "all"}}
SAVES = 5
"""Epochs, and so saved states, from the start of a process to its death in a training: five deaths
of two workers at once leave epochs for a sixth."""

DIED = 4
"""Exit code of a compile that one of its workers has left."""

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


def set_training_trap(number: int) -> None:
    """Make this process save a state after each epoch, and die after the one of this number."""
    training.SAVE_SECONDS = 0.0
    training.TrainingWatch._save = at_call(training.TrainingWatch._save, number, after=True)


# A worker process imports this file again before it starts work, and finds its trap here.
if __name__ == "__mp_main__" and "KILL_WORKER" in os.environ:
    from reallm_compiler.execute.encode import Encoder

    Encoder.run = at_call(Encoder.run, int(os.environ["KILL_WORKER"]))
if __name__ == "__mp_main__" and "KILL_TRAINING" in os.environ:
    set_training_trap(int(os.environ["KILL_TRAINING"]))


def child(
    model: Path,
    output: Path,
    workers: int,
    phase: str | None,
    number: int,
    recipe: dict[str, Any] = RECIPE,
) -> int:
    """Compile in a child process that may be killed; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            if phase == "training" and workers > 1:
                os.environ["KILL_TRAINING"] = str(number)
            elif phase == "training":
                set_training_trap(number)
            elif phase is not None:
                set_trap(phase, number)
            reallm.compile(recipe, model=model, output=output, device="cpu", workers=workers)
        except BaseException as error:
            if isinstance(error, CompileError) and "worker process died" in error.message:
                os._exit(DIED)
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


def in_training(model: Path, folder: Path, times: int, workers: int) -> bool:
    """Kill `times` times in the midst of trainings, finish with two workers, compare."""
    good = True
    for title, recipe in (("own decoders", TRAINED), ("one decoder", SHARED)):
        kind = title.split(" ")[0]
        right = folder / f"right-{kind}.reallm"
        if not right.exists():
            good &= child(model, right, 1, None, 0, recipe) == 0
        output = folder / f"training-{kind}-{workers}.reallm"
        killed = states = 0
        for _ in range(times):
            status = child(model, output, workers, "training", SAVES, recipe)
            killed += os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == DIED
            states += any(folder.glob(f"{output.name}.partial.*.state"))
        good &= killed == states == times
        good &= child(model, output, 2, None, 0, recipe) == 0
        good &= digest(output) == digest(right)
        good &= not list(folder.glob(f"{output.name}.*"))
        told = "same bytes" if good else "FAILED"
        print(f"training  workers {workers}  killed {killed}  {told}, {title}", flush=True)
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
    parser.add_argument("--phase", nargs="+", default=[*PHASES, "worker", "training"])
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
            if "training" in given.phase:
                good &= in_training(model, folder, given.times, workers)
        if "worker" in given.phase and max(given.workers) > 1:
            good &= worker_alone(model, folder, given.times, right)
    print("all archives equal" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
