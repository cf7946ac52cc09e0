"""Makes archives that somebody forged, digests right, and gives them to every command.

    python tests/faults/fuzz_archive.py [--count 10000] [--seed 0]

`forged_archives` makes them. `verify`, `inspect`, `budget`, `report`, `diff`, `reconstruct`, `load`
and the exports run on each in this process. Each must end in success or with an error that is
foreseen, without control characters, in bounded time and memory; an archive that was not changed
must pass them all.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import reallm_compiler as reallm
from reallm_compiler.errors import ReallmError
from tests.faults.forged_archives import LAYER, mutant
from tests.faults.fuzzing import Outcome, run
from tests.faults.watched import run_command, time_limit, watched

MEMORY = 3 << 30


def commands(path: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and words of each command line."""
    yield "verify", ["verify", str(path)]
    yield "verify --quick", ["verify", "--quick", str(path)]
    yield "inspect", ["inspect", str(path)]
    yield "inspect --json", ["inspect", "--json", str(path)]
    yield "inspect NAME", ["inspect", str(path), f"{LAYER}mlp.up_proj"]
    yield "budget", ["budget", str(path)]
    yield "report", ["report", str(path), "-o", str(out / "report.html")]
    yield "diff", ["diff", str(path), str(path)]
    yield "reconstruct", ["reconstruct", str(path), "-o", str(out / "folder")]
    yield "adapter export", ["adapter", "export", str(path), "-o", str(out / "peft")]
    yield "decoder", ["decoder", str(path), f"{LAYER}mlp.up_proj", "-o", str(out / "decoder")]


def load(path: Path) -> int:
    """Whether `reallm_compiler.load` gave a model (0), or an error that is foreseen (1)."""
    try:
        reallm.load(path)
    except ReallmError as error:
        print(error)
        return 1
    return 0


def attempt(number: int, path: Path, out: Path, changed: bool, outcome: Outcome) -> None:
    """Run every command on one archive."""
    ended: dict[str, int] = {}
    calls: dict[str, Callable[[], int]] = {
        name: partial(run_command, args) for name, args in commands(path, out)
    }
    for name, call in {**calls, "load": partial(load, path)}.items():
        ended[name] = watched(number, name, call, outcome)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    outcome.intact += ended["verify"] == 0
    may_refuse = ("adapter export", "decoder", "inspect NAME", "load")
    refused = [name for name, code in ended.items() if code and name not in may_refuse]
    if not changed and refused:
        outcome.findings.append(f"{number}: nothing was changed, and {refused[0]} refuses it")


def fuzz(count: int, seed: int, folder: Path) -> Outcome:
    """Try the archives `seed` to `seed` + `count` - 1."""
    outcome = Outcome()
    path, out = folder / "mutant.reallm", folder / "out"
    out.mkdir()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with time_limit():
        for number in range(seed, seed + count):
            data, changed = mutant(number)
            path.write_bytes(data)
            attempt(number, path, out, changed, outcome)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if (now - peak) * 1024 > MEMORY:
                outcome.findings.append(f"{number}: {(now - peak) >> 10} MiB more than before")
                peak = now
    return outcome


def main() -> int:
    """Run and print; 1 if anything was found."""
    return run(fuzz, __doc__, count=10_000)


if __name__ == "__main__":
    sys.exit(main())
