"""Kill a compile at every phase, let it go on, and compare the bytes with an undisturbed run.

    python tests/faults/crash_recovery.py --times 5 --workers 1 2          the full study
    python tests/faults/crash_recovery.py --times 1 --workers 1 --phase slot rename

Phases, and the moments in them that the kills go through in turn:

    reserve   before the reservation, an empty file, reserved, no journal yet, half its first line
    slot      half a section of a matrix or a share group is written, each time another one
    journal   the sections are on disk, their record is not, or half of it is
    manifest  before it, a part of it, header missing, a part of that, whole but not yet forced
    rename    just before
    renamed   just after, when the folder is forced, when the journal is still there
    worker    one worker dies alone: before a task, while a matrix is coded, in a slot; the compile
              says so
    training  in the midst of training a matrix's own decoder, or one that a group shares; with two
              workers one of them dies or both do; what one had trained goes on with two

Every kill is SIGKILL from inside, at an exact point: with two workers a slot is written by one of
them, which takes the compile with it. A kill counts as struck only if the files that it left show
its phase. Prints one line per phase and number of workers, and exits with 1 if a kill did not
strike or a resumed archive differs from one that was never killed, by one worker.

The model is a random Llama made here. The kills strike child processes of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import reallm_compiler as reallm
from reallm_compiler.errors import CompileError
from reallm_compiler.runs import output as output_module
from reallm_compiler.runs import training
from reallm_compiler.runs.journal import Journal, _parse
from reallm_formats import Archive, Writer, names
from reallm_formats.v1 import HEADER_BYTES

# Functions of these are replaced.
publish_module: Any = import_module("reallm_compiler.publish")
runner_module: Any = import_module("reallm_compiler.execute.runner")
pool_module: Any = import_module("reallm_compiler.runs.pool")
writer_module: Any = import_module("reallm_formats.writer")

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

BLANK = 0xA5
"""What the rest of a torn slot holds."""

CODING_CALLS = 40
"""Calls of Python functions, from one kill in the coding of a matrix to the next."""


def make_model(folder: Path) -> Path:
    """A random Llama of four layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_worker() -> bool:
    """Whether this process is a worker of the compile."""
    return os.environ["KILL_COMPILER"] != str(os.getpid())


def strike(**facts: Any) -> None:
    """End the run, or in phase `worker` this process, and leave word of where.

    Of several processes that come here the first one strikes.
    """
    try:
        witness = open(os.environ["KILL_WITNESS"], "x")  # noqa: SIM115 - nothing closes it but death
    except FileExistsError:
        return
    print(json.dumps(facts), file=witness, flush=True)
    if is_worker() and not os.environ["KILL"].startswith("worker"):
        os.kill(int(os.environ["KILL_COMPILER"]), signal.SIGKILL)
    die()


def at_call(
    original: Callable[..., Any],
    number: int,
    *,
    after: bool = False,
    end: Callable[[], None] = strike,
) -> Callable[..., Any]:
    """`original`, but `end` is called at the call of this number, before it or after it."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            end()
        result = original(*args, **kwargs)
        if calls[0] == number and after:
            end()
        return result

    return wrapped


def set_trap(phase: str, number: int) -> None:
    """Make this process strike at a moment of a phase; the k-th kill is at the k-th moment."""
    if phase == "reserve":
        trap_reservation((number - 1) % 5)
    elif phase == "slot":
        tear_a_slot(1 + 2 * ((number - 1) % 3), (1 + (number - 1) % 5) / 6)
    elif phase == "journal":
        trap_records("task", 1 + (number - 1) % 3, half=number % 2 == 0)
    elif phase == "manifest":
        trap_manifest((number - 1) % 5)
    elif phase == "rename":
        os.replace = at_call(os.replace, 1)
    elif phase == "renamed":
        trap_after_rename((number - 1) % 3)
    elif phase == "worker":
        trap_worker(number)
    elif phase == "training":
        # Here each worker dies for itself, after a state was saved.
        training.SAVE_SECONDS = 0.0
        save = training.StateFiles.save
        training.StateFiles.save = at_call(save, number, after=True, end=die)


def trap_reservation(moment: int) -> None:
    if moment == 0:
        Writer.create = at_call(Writer.create, 1)
    elif moment == 1:
        writer_module._reserve = at_call(writer_module._reserve, 1)
    elif moment == 2:
        Writer.create = at_call(Writer.create, 1, after=True)
    else:
        trap_records("identity", 1, half=moment == 4)


def tear_a_slot(number: int, part: float) -> None:
    """Die when a part of the section of this number, of matrices and groups, is written."""
    writer_module.CHUNK = 7  # with tiny chunks a section can be torn anywhere
    write_parts, write_all = Writer.write_parts, writer_module._write_all
    seen = [0]
    torn: list[tuple[str, int]] = []  # the section, and where its writing ends

    def traced(self: Writer, name: str, parts: Any) -> bytes:
        entry = self._section(name)
        size = entry.end - entry.offset
        if name.startswith((names.MATRIX, names.SHARE)) and size > 2 * writer_module.CHUNK:
            seen[0] += 1
            if seen[0] == number:
                # Whatever an earlier run has left there: what follows the tear is not the section.
                write_all(self._descriptor, memoryview(bytes([BLANK]) * size), entry.offset)
                chunks = max(1, int(part * size) // writer_module.CHUNK)
                torn.append((name, entry.offset + chunks * writer_module.CHUNK))
        return write_parts(self, name, parts)

    def counted(descriptor: int, data: memoryview, offset: int) -> None:
        if torn and offset == torn[0][1]:
            strike(section=torn[0][0], end=offset)
        write_all(descriptor, data, offset)

    Writer.write_parts = traced
    writer_module._write_all = counted


def trap_records(kind: str, number: int, *, half: bool) -> None:
    """Die before the journal's record of this kind and number, or when half of it is written."""
    append, write = Journal.append, os.write
    calls = [0]

    def wrapped(self: Journal, record: dict[str, Any]) -> None:
        def cut(descriptor: int, data: memoryview) -> int:
            write(descriptor, data[: len(data) // 2])
            return strike(**facts)

        calls[0] += kind in record
        if calls[0] == number:
            facts = {key: record[key] for key in ("task", "sections") if key in record}
            if not half:
                strike(**facts)
            os.write = cut
        append(self, record)

    Journal.append = wrapped


def trap_manifest(moment: int) -> None:
    if moment == 0:
        writer_module.encode_manifest = at_call(writer_module.encode_manifest, 1)
    elif moment == 2:
        writer_module.encode_header = at_call(writer_module.encode_header, 1)
    else:
        finish, write_all = Writer.finish, writer_module._write_all
        place = HEADER_BYTES if moment == 1 else 0
        parts = 1 if moment == 4 else 4  # the second half of a header is padding
        finishing = [False]

        def traced(*args: Any) -> None:
            finishing[0] = True
            finish(*args)

        def cut(descriptor: int, data: memoryview, offset: int) -> None:
            if not finishing[0] or offset != place:
                return write_all(descriptor, data, offset)
            write_all(descriptor, data[: len(data) // parts], offset)
            return strike()

        Writer.finish = traced
        writer_module._write_all = cut


def trap_after_rename(moment: int) -> None:
    if moment == 0:
        os.replace = at_call(os.replace, 1, after=True)
    elif moment == 1:
        publish_module.sync_path = at_call(publish_module.sync_path, 1, after=True)
    else:
        Journal.remove = at_call(Journal.remove, 1)


def trap_worker(number: int) -> None:
    """One worker dies, in turn before a task, while a matrix is coded, and in a slot."""
    if not is_worker():
        return
    if number % 3 == 1:
        runner = runner_module.CompileRunner
        runner.run = at_call(runner.run, 2, end=lambda: strike(where="before a task"))
    elif number % 3 == 2:
        die_in_coding(number * CODING_CALLS)
    else:
        tear_a_slot(2, 1 / 2)


def die_in_coding(number: int) -> None:
    """Die at the call of this number of a Python function inside the coding of matrices."""
    encode_matrix = runner_module.encode_matrix
    calls = [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[0] += event == "call"
        if calls[0] == number:
            sys.setprofile(None)
            strike(where=f"in {frame.f_code.co_qualname}")

    def traced(*args: Any, **kwargs: Any) -> Any:
        sys.setprofile(count)
        try:
            return encode_matrix(*args, **kwargs)
        finally:
            sys.setprofile(None)

    runner_module.encode_matrix = traced


TRAPPED_START = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import crash_recovery
crash_recovery.set_trap(*crash_recovery.asked())
{{start}}"""
"""What a worker process runs: first its trap is set."""


def asked() -> tuple[str, int]:
    """Phase and number of the kill that is to be."""
    phase, number = os.environ["KILL"].split()
    return phase, int(number)


@dataclass(frozen=True)
class Right:
    """The archive of a run that was never killed."""

    data: bytes
    ranges: dict[str, slice]

    @classmethod
    def read(cls, path: Path) -> Right:
        with Archive.open(path) as archive:
            ranges = {
                entry.name: slice(entry.offset, entry.end) for entry in archive.manifest.sections
            }
        return cls(path.read_bytes(), ranges)


def child(
    model: Path,
    output: Path,
    workers: int,
    phase: str | None,
    number: int,
    recipe: dict[str, Any] = RECIPE,
) -> int:
    """Compile in a child process that may be killed; its wait status."""
    witness_of(output).unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            if phase is not None:
                os.environ["KILL"] = f"{phase} {number}"
                os.environ["KILL_WITNESS"] = str(witness_of(output))
                os.environ["KILL_COMPILER"] = str(os.getpid())
                pool_module.START = TRAPPED_START.format(start=pool_module.START)
                set_trap(phase, number)
            reallm.compile(recipe, model=model, output=output, device="cpu", workers=workers)
        except BaseException as error:
            if isinstance(error, CompileError) and "worker process died" in error.message:
                os._exit(DIED)
            print(f"child failed: {error!r}", file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def witness_of(output: Path) -> Path:
    """Where a process that strikes leaves word."""
    return output.parent / f"witness-{output.name}.json"


def shown(phase: str, number: int, facts: dict[str, Any], output: Path, right: Right) -> bool:
    """Whether the files that a kill has left show its phase."""
    path = output_module.Output(output)
    partial = path.partial.read_bytes() if path.partial.exists() else b""
    records = _parse(path.journal.read_bytes())[0] if path.journal.exists() else []
    if output.exists() != (phase == "renamed"):
        return False
    if phase == "renamed":
        return output.read_bytes() == right.data and bool(records) and not partial
    if phase == "reserve":
        return not records and len(partial) == (len(right.data) if (number - 1) % 5 > 1 else 0)
    if "section" in facts:  # torn: its start is there, its rest is not
        slot, end = right.ranges[facts["section"]], facts["end"]
        rest = partial[end : slot.stop]
        start = slice(slot.start, end)
        return 0 < len(rest) == rest.count(BLANK) and partial[start] == right.data[start] != b""
    if phase == "journal":
        stored = all(
            partial[right.ranges[name]] == right.data[right.ranges[name]]
            for name in facts["sections"]
        )
        return stored and facts["task"] not in {record.get("task") for record in records}
    if phase == "manifest" and (number - 1) % 5 < 4:
        later = HEADER_BYTES if (number - 1) % 5 > 1 else len(right.data)
        body = slice(HEADER_BYTES, None)
        whole = later == HEADER_BYTES
        return partial[:HEADER_BYTES] != right.data[:HEADER_BYTES] and (
            (partial[body] == right.data[body]) == whole
        )
    if phase in ("manifest", "rename"):
        return partial == right.data
    return phase == "worker" and bool(records)


def study(model: Path, folder: Path, phase: str, times: int, workers: int, right: Right) -> bool:
    """Kill `times` times in one phase, finish, compare.

    One output is killed again and again. Where little may be left to kill, each kill has an output
    of its own: after the rename, and when a worker dies, since the other one works on until that
    is seen.
    """
    numbers = range(1, times + 1)
    rounds = [[number] for number in numbers] if phase in ("renamed", "worker") else [list(numbers)]
    struck = equal = 0
    struck_at = []
    for turn, kills in enumerate(rounds):
        output = folder / f"{phase}-{workers}-{turn}.reallm"
        for number in kills:
            status = child(model, output, workers, phase, number)
            if phase == "worker":
                died = os.waitstatus_to_exitcode(status) == DIED
            else:
                died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if not died or not witness_of(output).exists():
                continue
            facts = json.loads(witness_of(output).read_text())
            struck += shown(phase, number, facts, output, right)
            if "section" in facts:
                slot = right.ranges[facts["section"]]
                written = f"{facts['end'] - slot.start} of {slot.stop - slot.start} bytes"
                struck_at.append(f"{facts['section']}, {written}")
            elif "where" in facts:
                struck_at.append(facts["where"])
        status = child(model, output, workers, None, 0)
        left = [path.name for path in folder.iterdir() if path.name.startswith(output.name + ".")]
        equal += status == 0 and output.read_bytes() == right.data and not left
    print_line(phase, workers, struck, times, equal, len(rounds))
    for text in struck_at:
        print(f"          {text}", flush=True)
    return struck == times and equal == len(rounds)


def print_line(
    phase: str, workers: int, struck: int, times: int, equal: int, archives: int, more: str = ""
) -> None:
    """One line of the study."""
    print(
        f"{phase:9} workers {workers}  kills that struck {struck} of {times}  "
        f"archives equal {equal} of {archives}{more}",
        flush=True,
    )


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
        same = child(model, output, 2, None, 0, recipe) == 0
        same = same and output.read_bytes() == right.read_bytes()
        same = same and not list(folder.glob(f"{output.name}.*"))
        print_line("training", workers, min(killed, states), times, int(same), 1, f", {title}")
        good &= killed == states == times and same
    return good


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
        right = Right.read(folder / "right.reallm")
        good = True
        for workers in given.workers:
            for phase in PHASES:
                if phase in given.phase:
                    good &= study(model, folder, phase, given.times, workers, right)
            if "worker" in given.phase and workers > 1:
                good &= study(model, folder, "worker", given.times, workers, right)
            if "training" in given.phase:
                good &= in_training(model, folder, given.times, workers)
    print("every kill struck, all archives equal" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
