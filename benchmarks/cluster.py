"""Two workers of a Ray cluster against one, on this machine: `python -m benchmarks.cluster`.

A random checkpoint of equal matrices is compiled by a cluster of one node with two processors, with
one task at a time and with two, in turn, after a run that has started all workers. Printed are the
seconds by the clock, the processor seconds that the workers took, the speed-up of each pair, what
it would be if each worker had a processor to itself, the peak of anonymous memory beside what the
preflight says, and the machine's load, without which the rest says little: on two cores that do
other work two workers get no more of them than one.

It fails if the archives differ, or a process holds more memory than the preflight said.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import reallm_compiler as reallm
from benchmarks.processes import anonymous_bytes
from reallm_compiler.execute.cluster import task_memory
from reallm_compiler.execute.preflight import INTERPRETER_BYTES
from reallm_compiler.runs.cluster import ClusterOptions

RECIPE = {
    "reallm": 1,
    "defaults": {"scales": {"kind": "rms"}, "quantizer": {"kind": "vq", "bits": 2, "dim": 4}},
}
SAMPLE_SECONDS = 0.2
TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """All processes below one."""
    try:
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [below for one in map(int, direct) for below in (one, *children(one))]


def is_worker(pid: int) -> bool:
    """Whether a process does tasks, or waits for them."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except (FileNotFoundError, ProcessLookupError):
        return False


def processor_seconds(pid: int) -> float:
    """What a process has taken so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class Watched:
    """Memory and processor seconds of Ray's workers and of this process while something runs."""

    def __enter__(self) -> Watched:
        self.peaks: dict[int, int] = {}
        self._end = threading.Event()
        self._before = {pid: processor_seconds(pid) for pid in self._workers()}
        self._last = dict(self._before)  # Ray ends workers that have nothing to do
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._began
        self._end.set()
        self._thread.join()
        self._read_clocks()
        self.cpu = [seconds - self._before.get(pid, 0.0) for pid, seconds in self._last.items()]

    def _sample(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self._read_clocks()
            for pid in (os.getpid(), *self._workers()):
                self.peaks[pid] = max(self.peaks.get(pid, 0), anonymous_bytes(pid))

    def _read_clocks(self) -> None:
        for pid in self._workers():
            self._last[pid] = max(self._last.get(pid, 0.0), processor_seconds(pid))

    def _workers(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if is_worker(pid)]


def write_checkpoint(folder: Path, matrices: int, size: int) -> None:
    """Equal matrices, each in a file of its own."""
    draw = np.random.default_rng(0)
    for number in range(matrices):
        weight = draw.standard_normal((size, size), dtype=np.float32)
        save_file({f"layers.{number}.w.weight": weight}, folder / f"part{number}.safetensors")


def compiled(model: Path, output: Path, workers: int, address: str) -> Watched:
    """One compile on the cluster that is there."""
    given: dict[str, Any] = {"model": model, "output": output, "workers": workers, "device": "cpu"}
    with Watched() as watched:
        reallm.compile(
            RECIPE, **given, cluster=ClusterOptions(address=address), force=True, progress=False
        )
    return watched


def load() -> str:
    """The load of the machine in the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def main() -> int:
    """Compile in turn and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "model")
        folder.mkdir()
        write_checkpoint(folder, given.matrices, given.size)
        need = task_memory(reallm.plan(RECIPE, model=folder), 0)
        limit = max(need(f"matrix:layers.{number}.w") for number in range(given.matrices))
        outputs = {workers: Path(made, f"{workers}.reallm") for workers in (1, 2)}
        compiled(folder, outputs[2], 2, "local")
        ratios, ideal, peaks = [], [], [0, 0]
        print(f"{'workers':>7} {'clock s':>8} {'processor s of workers':>24} {'load':>6}")
        for _ in range(given.pairs):
            walls = {}
            for workers in (1, 2):
                found = compiled(folder, outputs[workers], workers, "local")
                busy = sorted((seconds for seconds in found.cpu if seconds > 0.05), reverse=True)
                parts = " + ".join(f"{seconds:.1f}" for seconds in busy)
                print(f"{workers:7} {found.wall:8.1f} {parts:>24} {load():>6}", flush=True)
                walls[workers] = found.wall
                if workers == 2:
                    ideal.append(sum(busy[:2]) / busy[0])
                own = found.peaks.pop(os.getpid(), 0)
                peaks = [max(peaks[0], own), max(peaks[1], *found.peaks.values())]
            ratios.append(walls[1] / walls[2])
        same = outputs[1].read_bytes() == outputs[2].read_bytes()
    ray.shutdown()
    print(f"speed-up by the clock: {', '.join(f'{one:.2f}' for one in ratios)}")
    print(f"speed-up if each worker had a processor to itself: {statistics.median(ideal):.2f}")
    print(f"peak memory: a worker {peaks[1] >> 20:,} MiB, of at most {limit >> 20:,} MiB")
    print(f"             this process {peaks[0] >> 20:,} MiB, of {INTERPRETER_BYTES >> 20:,} MiB")
    print(f"the same bytes: {'yes' if same else 'NO'}")
    return 0 if same and peaks[1] <= limit and peaks[0] <= INTERPRETER_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
