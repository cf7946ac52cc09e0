"""The Ray backend without Ray: what it submits, takes, tries again and refuses."""

from __future__ import annotations

import pickle
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reallm_compiler.errors import CompileError, ResumeError
from reallm_compiler.runs import ray_monitor, ray_worker
from reallm_compiler.runs.backends import results
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.events import TriedAgain
from reallm_compiler.runs.oom import MemoryShortageError
from reallm_compiler.runs.open_machines import open_machines
from reallm_compiler.runs.parcels import ReservedFile
from reallm_compiler.runs.ray_backend import RayBackend
from reallm_compiler.runs.ray_cluster import RayCluster
from reallm_compiler.runs.ray_monitor import ClusterMonitor
from reallm_compiler.runs.ray_nodes import described, slots_of
from reallm_compiler.runs.ray_worker import check_fields, node_fields
from reallm_compiler.runs.stop import Interrupted, StopRequest
from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult
from reallm_formats import Writer, layout

sys.path.insert(0, str(Path(__file__).parent))
from fake_ray import FakeRay, RayTaskError
from jobs import BAD, HashJob, WriteJob

DOCUMENT = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}
SIZES = {"tensor:a": 8, "tensor:b": 16, "tensor:c": 8, "tensor:d": 8}
GRAPH = TaskGraph(
    [
        Task(key="tensor:a", title="a", sections=("tensor:a",)),
        Task(key="tensor:b", title="b", needs=("tensor:a",), sections=("tensor:b",)),
        Task(key="tensor:c", title="c", sections=("tensor:c",)),
        Task(key="tensor:d", title="d", sections=("tensor:d",)),
    ]
)
WHOLE = {
    "tensor:a": b"tensor:a",
    "tensor:b": b"tensor:atensor:b",
    "tensor:c": b"tensor:c",
    "tensor:d": b"tensor:d",
}
GIB = 1 << 30
NODE = {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0, "memory": 4.0 * GIB}}


class FakeMonitor:
    nodes = (NODE,)
    lost: CompileError | None = None


@pytest.fixture
def output(tmp_path: Path) -> ReservedFile:
    placed = layout(
        kind="model", document=DOCUMENT, sections=[(n, "u8", (s,)) for n, s in SIZES.items()]
    )
    Writer.create(tmp_path / "o", placed).close()
    return ReservedFile(tmp_path / "o", placed)


def run(
    ray: FakeRay,
    output: ReservedFile | None,
    monkeypatch: pytest.MonkeyPatch,
    *,
    job: Any = None,
    graph: TaskGraph = GRAPH,
    stop: StopRequest | None = None,
    fields: dict[str, str] | None = None,
    monitor: Any = None,
    memory: int = GIB,
) -> tuple[list[TaskResult], list[Any]]:
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_worker, "_current", None)
    cluster = RayCluster(
        ray,
        ClusterOptions(address="auto"),
        torch.device("cpu"),
        "cpu",
        fields or node_fields("cpu"),
        gpu_bytes=0,
        monitor=monitor or FakeMonitor(),
    )
    backend = RayBackend(cluster, 8, lambda task: memory, 0, output)
    events: list[Any] = []
    found = results(backend, job or WriteJob(), graph, (), stop or StopRequest(), events.append)
    with closing(found):
        return list(found), events


def stored(output: ReservedFile) -> dict[str, bytes]:
    with output.open() as sink:
        return {name: sink.read(name) for name in SIZES}


def test_sections_reach_the_output_and_events_the_caller(
    output: ReservedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()
    found, events = run(ray, output, monkeypatch)
    assert stored(output) == WHOLE
    assert sorted(result.task for result in found) == sorted(GRAPH.by_key)
    assert sorted(events) == sorted(f"writes {name}" for name in SIZES)
    assert ray.most == 2  # the processors of the one node
    assert all(options["num_cpus"] == 1 for _, options in ray.submitted)
    assert all(
        options["memory"] == GIB and not options["max_retries"] for _, options in ray.submitted
    )


LOST = FakeRay.exceptions


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (LOST.NodeDiedError(), "the node is gone"),
        (LOST.WorkerCrashedError(), "the worker process was killed"),
        (LOST.OutOfMemoryError(), "memory ran out"),
        (RayTaskError(LOST.NodeDiedError()), "the node is gone"),
        (LOST.RayError("the object is lost\nmore"), "the object is lost"),
        (StopIteration(), "the task ended without a result"),
    ],
)
@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_a_task_that_is_lost_at_any_point_is_done_again(
    error: BaseException,
    why: str,
    answers: int,
    output: ReservedFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = FakeRay({"tensor:b": [(answers, error)]})
    _, events = run(ray, output, monkeypatch)
    assert stored(output) == WHOLE
    (again,) = [event for event in events if isinstance(event, TriedAgain)]
    assert again.name == "b"
    assert again.why.endswith(why)
    memory = [options["memory"] for key, options in ray.submitted if key == "tensor:b"]
    assert memory == [GIB, 2 * GIB if "memory" in why else GIB]


def test_a_shortage_asks_for_no_more_than_the_largest_node_has(
    output: ReservedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay({"tensor:b": [(0, LOST.OutOfMemoryError())] * 2})
    run(ray, output, monkeypatch, memory=3 * GIB)
    assert [o["memory"] for k, o in ray.submitted if k == "tensor:b"] == [3 * GIB, 4 * GIB, 4 * GIB]


def test_the_third_loss_names_the_task(
    output: ReservedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay({"tensor:c": [(0, LOST.WorkerCrashedError())] * 3})
    with pytest.raises(CompileError, match="c failed 3 times on the cluster"):
        run(ray, output, monkeypatch)


def test_an_error_of_a_task_itself_is_raised_after_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = TaskGraph([Task(key=key, title=key) for key in (BAD, "x", "y")])
    ray = FakeRay()
    with pytest.raises(ValueError, match="bad task"):
        run(ray, None, monkeypatch, job=HashJob(), graph=graph)
    assert [key for key, _ in ray.submitted] == [BAD, "x"] or len(ray.submitted) == 3


def test_memory_that_runs_out_inside_a_task_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(HashJob):
        def open(self, context: Any) -> Any:
            raise MemoryShortageError("memory ran out")

    graph = TaskGraph([Task(key="x", title="x")])
    monkeypatch.setattr(pickle, "loads", lambda data: Short())
    with pytest.raises(CompileError, match="x failed 3 times"):
        run(FakeRay(), None, monkeypatch, job=HashJob(), graph=graph)


def test_a_stop_cancels(output: ReservedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, stop = FakeRay(), StopRequest()
    wait = ray.wait

    def stopping(*args: Any, **options: Any) -> Any:
        stop.requested = True
        return wait(*args, **options)

    monkeypatch.setattr(ray, "wait", stopping)
    with pytest.raises(Interrupted):
        run(ray, output, monkeypatch, stop=stop)
    assert ray.cancelled == 2


def test_a_machine_of_another_kind_does_nothing(
    output: ReservedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {**node_fields("cpu"), "compute": "cpu ABACUS"}
    with pytest.raises(CompileError, match="`cpu ABACUS` elsewhere"):
        run(FakeRay(), output, monkeypatch, fields=wanted)
    for key in ("reallm", "torch", "python", "compute"):
        with pytest.raises(CompileError, match="east differs"):
            check_fields({**wanted, key: "0"}, wanted, "east")
    check_fields(wanted, dict(wanted), "east")


def test_a_cluster_that_is_lost_ends_the_run(
    output: ReservedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = SimpleNamespace(nodes=[NODE], lost=ResumeError("the cluster is lost"))
    with pytest.raises(ResumeError, match="lost"):
        run(FakeRay(), output, monkeypatch, monitor=monitor)
    with pytest.raises(CompileError, match="no node of the cluster is left"):
        run(FakeRay(), output, monkeypatch, monitor=SimpleNamespace(nodes=[], lost=None))


def test_the_monitor_sees_a_silent_head_and_a_lost_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_monitor, "POLL_SECONDS", 0.01)
    nodes = [dict(NODE)]
    alive = ClusterMonitor(lambda: nodes, "here")
    assert alive.lost is None
    nodes[0] = {**NODE, "NodeID": "there"}
    for _ in range(500):
        if alive.lost is not None:
            break
        time.sleep(0.01)
    lost = alive.lost
    assert lost is not None
    assert "the node of this process is gone" in (lost.note or "")
    alive.end()
    monkeypatch.setattr(ray_monitor, "LOST_SECONDS", -1.0)
    silent = ClusterMonitor(lambda: [NODE], "here")
    silent.end()
    lost = silent.lost
    assert lost is not None
    assert "has not answered" in (lost.note or "")


@pytest.mark.parametrize(
    ("resources", "memory", "gpus", "count"),
    [
        ({"CPU": 4.0, "memory": 8.0 * GIB}, GIB, 0.0, 4),
        ({"CPU": 4.0, "memory": 2.5 * GIB}, GIB, 0.0, 2),
        ({"CPU": 4.0, "memory": 8.0 * GIB, "GPU": 2.0}, GIB, 0.6, 2),
        ({"CPU": 4.0, "memory": 8.0 * GIB, "GPU": 1.0}, GIB, 0.3, 3),
        ({"CPU": 4.0, "memory": 8.0 * GIB}, GIB, 0.5, 0),
        ({"memory": 8.0 * GIB}, GIB, 0.0, 0),
    ],
)
def test_slots(resources: dict[str, float], memory: int, gpus: float, count: int) -> None:
    assert slots_of(resources, memory, gpus) == count


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ClusterOptions(address="local")
    with (
        pytest.raises(CompileError, match="ray, which is not installed") as caught,
        open_machines("auto", CompileError, types=("cpu",), cluster=options),
    ):
        pass
    assert "reallm-compiler[ray]" in (caught.value.hint or "")


def asked(*answers: Any) -> Any:
    """What a node is said to be like that answers so, one time after the other."""
    left = list(answers)
    ray = FakeRay()
    return described(ray, left.pop(0), lambda: left.pop(0), "east", time.monotonic() + 1.0)


def test_a_node_is_asked_again_where_its_worker_was_killed() -> None:
    found = ({"torch": "2"}, "cpu", 0)
    killed = LOST.WorkerCrashedError("killed")
    assert asked(found) == asked(killed, LOST.OutOfMemoryError(), found) == found
    with pytest.raises(CompileError, match="east cannot do tasks") as caught:
        asked(killed, killed, killed, found)
    assert "memory" in (caught.value.hint or "")
    with pytest.raises(CompileError, match="east cannot do tasks") as caught:
        asked(RayTaskError(ModuleNotFoundError("No module named 'reallm_compiler'")), found)
    assert "install the same version" in (caught.value.hint or "")
    with pytest.raises(CompileError, match="east does not answer"):
        asked(LOST.GetTimeoutError(), found)


def test_a_node_is_asked_again_that_ray_does_not_know_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reallm_compiler.runs.ray_nodes.UNKNOWN_SECONDS", 0.0)
    found = ({"torch": "2"}, "cpu", 0)
    unknown = LOST.TaskUnschedulableError("the node does not exist any more")
    assert asked(unknown, unknown, found) == found
    with pytest.raises(CompileError, match="east cannot do tasks") as caught:
        asked(unknown, unknown, unknown, found)
    assert "ray status" in (caught.value.hint or "")
