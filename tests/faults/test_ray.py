"""A Ray cluster of three nodes made of processes: the bytes of one process, whatever fails.

The machine that this runs on stands for three, so nothing is said of the speed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS
from tests.faults.fault_injection import (
    TIMEOUT_S,
    Bench,
    Result,
    ended,
    finished,
    refused,
    tasks_done,
    wait_for_tasks,
)

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]

SITE = Path(__file__).parent / "ray_site"
STORE_BYTES = 128 * 2**20

FEEDBACK = {
    "scales": {"kind": "rms", "per": "tensor"},
    "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
    "rounding": {"kind": "feedback", "sides": "both"},
}
UNIFORM = {
    "scales": {"kind": "minmax", "per": "block", "block": 16, "dtype": "float16"},
    "quantizer": {"kind": "uniform", "bits": 2},
}
HNERV = {
    "autoencoder": {"kind": "hnerv", "patch": 32, "width": 4, "epochs": 3},
    "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
}
RECIPES: dict[str, dict[str, Any]] = {
    "a shared codebook": {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "rms", "per": "row"},
            "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
            "share": "all",
        },
    },
    "statistics": {"reallm": 1, "statistics": "required", "defaults": FEEDBACK},
    "blocks that learn": {
        "reallm": 1,
        "fit": {
            "kind": "block",
            "epochs": 2,
            "batch": 4,
            "samples": 8,
            "window": 16,
            "learn": ["scales", "norms"],
        },
        "defaults": UNIFORM,
    },
    "a trained decoder": {"reallm": 1, "defaults": HNERV},
}


class Nodes:
    """The nodes of a cluster, each with one processor for tasks.

    Attributes:
        fault: the file that says what harms workers; see `ray_site`.
        others: the nodes beside the head's.
    """

    def __init__(self, fault: Path, *, beside: int = 2, **settings: Any) -> None:
        from ray.cluster_utils import Cluster

        self.fault = fault
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**head, **settings})
        self.others = [self.add() for _ in range(beside)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def lose(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def stop_at_work(self, node: Any) -> int:
        """Let the process of a node that is at a task stand still; its id."""
        (raylet,) = node.all_processes["raylet"]
        pid = raylet.process.pid
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if b"ray::layers." in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGSTOP)
                        return int(child)
            assert time.monotonic() < deadline, "the node does no task"
            time.sleep(0.001)

    def lose_head(self) -> None:
        self._cluster.head_node.kill_gcs_server()

    def harm(self, where: str, name: str, harm: str) -> None:
        self.fault.write_text(f"{where} {name} {harm}")

    def struck(self) -> bool:
        return not self.fault.exists()

    def end(self) -> None:
        self._cluster.shutdown()
        for left in self.fault.parent.glob(f"{self.fault.name}.*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(left.suffix[1:]), signal.SIGKILL)
            left.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del self._cluster
            gc.collect()  # Ray leaves files open


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The environment of all nodes' workers; the file by which they are harmed."""
    pytest.importorskip("ray")
    fault = tmp_path_factory.mktemp("fault") / "fault"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join([str(SITE), *sys.path]))
        patch.setenv("REALLM_FAULT", str(fault))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield fault


@pytest.fixture(scope="module")
def nodes(environment: Path) -> Iterator[Nodes]:
    """Three nodes; who loses one adds another."""
    made = Nodes(environment)
    yield made
    made.end()


def on(nodes: Nodes, *more: str) -> list[str]:
    """Arguments that run a command on a cluster."""
    return ["--ray", nodes.address, "--workers", "3", *more]


@pytest.fixture(scope="module")
def given(tiny_llama: Path, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and statistics of the tiny model."""
    folder = tmp_path_factory.mktemp("given")
    text = folder / "text.txt"
    text.write_text("\n".join(CORPUS) * 4)
    sizes = ["--samples", "8", "--window", "16", "--device", "cpu"]
    measured = ["calibrate", str(tiny_llama), "--text", str(text), *sizes]
    finished(bench.run([*measured, "-o", str(folder / "model.stats")]))
    return folder


def arguments(name: str, model: Path, given: Path, output: Path) -> list[str]:
    """Arguments that compile the tiny model by a recipe."""
    recipe = given / f"{name.replace(' ', '-')}.yaml"
    recipe.write_text(json.dumps(RECIPES[name]))
    found = ["compile", str(recipe), "--model", str(model), "-o", str(output), "--device", "cpu"]
    if "statistics" in RECIPES[name]:
        found += ["--stats", str(given / "model.stats")]
    if "fit" in RECIPES[name]:
        found += ["--text", str(given / "text.txt")]
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["sent back", "in place"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_cluster_makes_the_bytes_of_one_process(
    name: str, shared: bool, nodes: Nodes, bench: Bench, tiny_llama: Path, given: Path, output: Path
) -> None:
    alone = output.with_name("alone.reallm")
    finished(bench.run([*arguments(name, tiny_llama, given, alone), "--workers", "1"]))
    more = ["--shared-storage"] if shared else []
    finished(bench.run([*arguments(name, tiny_llama, given, output), *on(nodes, *more)]))
    assert output.read_bytes() == alone.read_bytes()


def start(bench: Bench, nodes: Nodes, output: Path, *more: str, first: str = "") -> Any:
    return bench.start(bench.arguments("slow", output, *on(nodes, *more)), first=first)


def ends_well(bench: Bench, process: subprocess.Popen[str], output: Path) -> Result:
    result = finished(ended(process))
    assert output.read_bytes() == bench.undisturbed("slow")
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]
    return result


PHASES = {
    "when it is asked what it is like": ("reallm_compiler.runs.ray_worker", "describe"),
    "before it opens the run": ("reallm_compiler.runs.ray_worker", "Serving._opened"),
    "while it reads": ("reallm_compiler.models.weights", "Weights.matrix"),
    "while it codes": ("reallm_compiler.execute.coder", "encode_matrix"),
    "before it sends": ("reallm_compiler.runs.parcels", "ParcelSink.flush"),
    "between its answers": ("reallm_compiler.runs.parcels", "ParcelSink.discard"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_is_killed(phase: str, nodes: Nodes, bench: Bench, output: Path) -> None:
    nodes.harm(*PHASES[phase], "kill")
    process = start(bench, nodes, output)
    result = ends_well(bench, process, output)
    assert nodes.struck()
    if "asked" not in phase:
        assert re.search(r"layers\.\d+\.w is done again: .*killed", result.err), result.err


def test_a_task_runs_out_of_memory(nodes: Nodes, bench: Bench, output: Path) -> None:
    nodes.harm("reallm_compiler.execute.coder", "encode_matrix", "memory")
    result = ends_well(bench, start(bench, nodes, output), output)
    assert "memory ran out" in result.err, result.err


def test_a_worker_stands_still(nodes: Nodes, bench: Bench, output: Path) -> None:
    nodes.harm("reallm_compiler.execute.coder", "encode_matrix", "stop")
    soon = "import reallm_compiler.runs.attempts as module; module.SLOW_SECONDS = 2.0"
    ends_well(bench, start(bench, nodes, output, first=soon), output)
    assert nodes.struck()


@pytest.mark.parametrize("shared", [False, True], ids=["sent back", "in place"])
def test_a_node_is_gone(shared: bool, nodes: Nodes, bench: Bench, output: Path) -> None:
    process = start(bench, nodes, output, *(["--shared-storage"] if shared else []))
    node = nodes.others.pop()
    worker = nodes.stop_at_work(node)
    done = tasks_done(output)
    wait_for_tasks(process, output, done + 3)  # what it was about to finish or to begin is settled
    nodes.lose(node)
    os.kill(worker, signal.SIGKILL)  # which a stopped process of a lost machine does not outlive
    result = ends_well(bench, process, output)
    nodes.others.append(nodes.add())
    assert "is done again" in result.err, result.err


@pytest.mark.parametrize("shared", [False, True], ids=["sent back", "in place"])
def test_the_driver_is_killed(shared: bool, nodes: Nodes, bench: Bench, output: Path) -> None:
    more = ["--shared-storage"] if shared else []
    process = start(bench, nodes, output, *more)
    done = wait_for_tasks(process, output, 4)
    process.kill()
    ended(process)
    assert tasks_done(output) >= done
    bench.resumes(output, *on(nodes, *more))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_driver_is_stopped(
    number: signal.Signals, nodes: Nodes, bench: Bench, output: Path
) -> None:
    process = start(bench, nodes, output)
    wait_for_tasks(process, output, 4)
    os.kill(process.pid, number)
    refused(ended(process), 130, "finished matrices are kept", "same command again")
    bench.resumes(output)  # without a cluster


def test_the_head_is_gone(environment: Path, bench: Bench, output: Path) -> None:
    made = Nodes(environment, beside=1)
    try:
        made.harm("reallm_compiler.execute.coder", "encode_matrix", "stop")
        never = "import reallm_compiler.runs.attempts as module; module.SLOW_SECONDS = 1e9"
        process = start(bench, made, output, first=never)
        wait_for_tasks(process, output, 4)
        made.lose_head()
        began = time.monotonic()
        result = ended(process)
    finally:
        made.end()
    refused(result, 7, "the cluster is lost", "same command again to resume")
    assert time.monotonic() - began < 55.0
    again = Nodes(environment, beside=1)
    try:
        bench.resumes(output, *on(again))
    finally:
        again.end()


def test_memory_of_a_node_runs_out(environment: Path, bench: Bench, output: Path) -> None:
    """Ray ends tasks, each time anew, on nodes that are said to be full."""
    settings = {"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 100}
    made = Nodes(environment, beside=0, _system_config=settings)
    try:
        result = ended(start(bench, made, output))
    finally:
        made.end()
    refused(result, 7)
    assert "failed 3 times" in result.err or "cannot do tasks" in result.err, result.err
    assert "memory" in result.err, result.err


def calibration(model: Path, given: Path, output: Path) -> list[str]:
    """Arguments that measure the tiny model, in three shards."""
    long = given / "long.txt"
    long.write_text("\n".join(CORPUS) * 100)
    sizes = ["--samples", "72", "--window", "120", "--device", "cpu", "--shards", "3"]
    text = ["--text", str(long)]
    return ["calibrate", str(model), *text, *sizes, "-o", str(output)]


@pytest.mark.parametrize("fault", ["none", "a worker is killed", "a node is gone"])
def test_a_calibration_has_the_bytes_of_one_process(
    fault: str, nodes: Nodes, bench: Bench, tiny_llama: Path, given: Path, output: Path
) -> None:
    alone = output.with_name("alone.stats")
    finished(bench.run(calibration(tiny_llama, given, alone)))
    if fault == "a worker is killed":
        nodes.harm("reallm_compiler.calibration.sums", "save_sums", "kill")
    arguments = [*calibration(tiny_llama, given, output), *on(nodes, "--shared-storage")]
    process = bench.start(arguments)
    if fault == "a node is gone":
        wait_for_tasks(process, output, 2)
        nodes.lose(nodes.others.pop())
    result = finished(ended(process))
    assert "3 workers" in result.err, result.err
    if fault == "a node is gone":
        nodes.others.append(nodes.add())
    if fault == "a worker is killed":
        assert nodes.struck()
        assert "is done again" in result.err, result.err
    assert output.read_bytes() == alone.read_bytes()
    assert {entry.name for entry in output.parent.iterdir()} == {output.name, alone.name}


def test_an_allocation_is_that_of_one_process(
    nodes: Nodes, bench: Bench, tiny_llama: Path, given: Path, output: Path
) -> None:
    recipe = given / "allocate.yaml"
    recipe.write_text(
        json.dumps(
            {
                "reallm": 1,
                "defaults": {
                    "scales": {"kind": "absmax", "per": "row"},
                    "quantizer": {"kind": "uniform", "bits": 4},
                },
                "allocate": {"bits": 3, "candidates": [{"quantizer": {"bits": [2, 4]}}]},
            }
        )
    )
    stats = ["--stats", str(given / "model.stats"), "--device", "cpu"]
    arguments = ["allocate", str(recipe), "--model", str(tiny_llama), *stats]
    alone, lock = output.with_name("alone.yaml"), output.with_name("lock.yaml")
    finished(bench.run([*arguments, "-o", str(alone)]))
    cache = ["--cache", str(output.with_name("cache"))]
    finished(bench.run([*arguments, "-o", str(lock), *cache, *on(nodes, "--shared-storage")]))
    assert lock.read_text() == alone.read_text()
