"""How many workers start, by the memory of the machine and of a GPU, which is handed in here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_cli.commands.compile import preflight_lines
from reallm_compiler import system
from reallm_compiler.codecs import fit_shared
from reallm_compiler.codecs.quantizers import vector_grid
from reallm_compiler.errors import CompileError
from reallm_compiler.execute import preflight
from reallm_compiler.execute.events import Preflight
from reallm_compiler.execute.preflight import choose_workers, device_worker_bytes, worker_bytes
from reallm_compiler.planning.model import Plan

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPES = {f"layers.{layer}.mlp.weight": [4096, 4096] for layer in range(8)}


def planned(recipe: Any = "nf4", shapes: dict[str, list[int]] = SHAPES) -> Plan:
    return reallm.plan(recipe, model={"shapes": shapes})


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Eight cores and free bytes that a test may change."""
    state: dict[str, int | None] = {"memory": 1 << 40, "gpu": None}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(preflight, "free_memory", lambda: state["memory"])
    monkeypatch.setattr(preflight, "free_device_memory", lambda device: state["gpu"])
    return state


def test_the_cpu_has_no_memory_of_its_own() -> None:
    chosen = choose_workers(planned(), None, 8, CPU)
    assert (chosen.count, chosen.device_bytes, chosen.device_free_bytes) == (8, None, None)


@pytest.mark.parametrize("fitting", [1, 3, 8, 100])
def test_as_many_workers_as_the_gpu_holds(machine: dict[str, int | None], fitting: int) -> None:
    plan = planned()
    each = device_worker_bytes(plan)
    machine["gpu"] = fitting * each + each // 2
    chosen = choose_workers(plan, None, 8, GPU)
    assert chosen.count == min(fitting, 8)
    assert chosen.device_bytes == chosen.count * each
    assert chosen.device_free_bytes == machine["gpu"]
    assert chosen.memory_bytes == choose_workers(plan, chosen.count, 8, GPU).memory_bytes


def test_the_machine_counts_on_a_gpu_as_well(machine: dict[str, int | None]) -> None:
    machine["gpu"] = 1 << 50
    machine["memory"] = 4 << 30
    assert 1 <= choose_workers(planned(), None, 8, GPU).count < 8
    machine["memory"] = 1 << 20
    with pytest.raises(CompileError, match="largest matrix: memory is too small"):
        choose_workers(planned(), None, 8, GPU)


def test_a_gpu_too_small_is_refused(machine: dict[str, int | None]) -> None:
    shapes = {**SHAPES, "layers.3.wide.weight": [4096, 11008]}
    plan = planned(shapes=shapes)
    machine["gpu"] = (1 << 30) + (100 << 20)
    with pytest.raises(CompileError) as caught:
        choose_workers(plan, None, 9, GPU)
    error = caught.value
    needed = device_worker_bytes(plan) >> 20
    assert error.message == (
        f"memory of cuda is too small: about {needed:,} MiB are needed for 1 worker "
        "and 1,124 MiB are free"
    )
    assert error.location == "layers.3.wide [4096, 11008] needs most"
    assert error.hint == "free memory, or use `--device cpu`"


def test_more_workers_than_fit_are_refused(machine: dict[str, int | None]) -> None:
    plan = planned()
    machine["gpu"] = 2 * device_worker_bytes(plan)
    assert choose_workers(plan, 2, 8, GPU).count == 2
    with pytest.raises(CompileError, match="for 3 workers") as caught:
        choose_workers(plan, 3, 8, GPU)
    assert caught.value.hint == "use fewer `--workers`"


@pytest.mark.parametrize(
    ("stage", "least"),
    [
        pytest.param(
            {"permutation": {"kind": "nearest", "rows": 64}}, 8 << 30, id="tables of 64 walks"
        ),
        pytest.param(
            {"permutation": {"kind": "nearest", "rows": "all"}}, 8 * 4096**2, id="one walk"
        ),
        pytest.param(
            {"quantizer": {"kind": "trellis", "bits": 2, "state_bits": 10}}, 1 << 28, id="paths"
        ),
        pytest.param(
            {"autoencoder": {"kind": "hnerv", "width": 32}, "quantizer": {"kind": "none"}},
            1 << 28,
            id="decoder",
        ),
    ],
)
def test_large_blocks_are_counted(stage: dict[str, Any], least: int) -> None:
    plain = {"scales": {"kind": "none"}, "quantizer": {"kind": "none"}}
    without = device_worker_bytes(planned({"reallm": 1, "defaults": plain}))
    added = device_worker_bytes(planned({"reallm": 1, "defaults": {**plain, **stage}})) - without
    assert least <= added < 12 << 30


def test_what_feedback_works_in_is_counted_once_on_each_device() -> None:
    plain = {
        "scales": {"kind": "rms", "per": "tensor"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
    }
    nearest = planned({"reallm": 1, "defaults": plain})
    rounding = {"kind": "feedback", "sides": "both"}
    coded = planned(
        {"reallm": 1, "statistics": "required", "defaults": {**plain, "rounding": rounding}}
    )
    moments = 4 * 4 * 4096**2  # two of the inputs and two of the outputs, float32
    factors = 8 * 8 * 4096**2  # four copies of each side, float64
    errors = 2 * 4 * 4096**2
    for count in (worker_bytes, device_worker_bytes):
        assert count(coded) - count(nearest) == moments + factors + errors


SHARED = {"scales": {"kind": "rms", "per": "row"}, "share": "all"}
VECTORS = {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}}


def of_group(recipe: Mapping[str, Any], shapes: dict[str, list[int]] = SHAPES) -> int:
    """Bytes that a worker needs more because the matrices share."""
    alone = {name: stage for name, stage in recipe.items() if name != "share"}
    return worker_bytes(planned({"reallm": 1, "defaults": recipe}, shapes)) - worker_bytes(
        planned({"reallm": 1, "defaults": alone}, shapes)
    )


@pytest.mark.parametrize(
    ("stages", "shapes", "gathered"),
    [
        pytest.param(VECTORS, SHAPES, (1 << 22) * 4 * 8, id="a sample of large matrices"),
        pytest.param(
            VECTORS, {"a.weight": [8, 16], "b.weight": [6, 8]}, (128 + 64) * 8, id="small matrices"
        ),
        pytest.param(
            {"quantizer": {"kind": "trellis", "bits": 2, "state_bits": 10}},
            SHAPES,
            2 * 2048 * 128 * 8,
            id="segments",
        ),
        pytest.param(
            {"quantizer": {"kind": "trellis", "bits": "9/4", "state_bits": 10}},
            SHAPES,
            2 * 2048 * 128 * 8,
            id="segments of two widths",
        ),
    ],
)
def test_what_a_group_gathers_is_counted(
    stages: dict[str, Any], shapes: dict[str, list[int]], gathered: int
) -> None:
    assert of_group({**SHARED, **stages}, shapes) == gathered


def test_the_sample_of_a_group_is_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as the coder really gathers, with fewer vectors than there are."""
    monkeypatch.setattr("reallm_compiler.storage.vq.SHARED_VECTORS", 3000)
    held = []
    gathered = vector_grid._Sample.vectors

    def recorded(self: Any) -> Any:
        held.append(gathered(self))
        return held[-1]

    monkeypatch.setattr(vector_grid._Sample, "vectors", recorded)
    stages = {**SHARED, **VECTORS}
    shapes = {"a.weight": [64, 128], "b.weight": [64, 64], "c.weight": [30, 64]}
    plan = planned({"reallm": 1, "defaults": stages}, shapes)
    members = plan.groups["all"]
    fit_shared(
        [member.plan for member in members],
        [torch.randn(member.shape) for member in members],
        seed=0,
    )
    (sample,) = held
    assert sample.weights is not None
    assert sample.values.nbytes + sample.weights.nbytes == of_group(stages, shapes)


def test_the_stated_memory_holds_the_interpreters_too() -> None:
    plan = planned()
    each, interpreter = worker_bytes(plan), preflight.INTERPRETER_BYTES
    assert choose_workers(plan, 1, 8, CPU).memory_bytes == each + interpreter
    assert choose_workers(plan, 3, 8, CPU).memory_bytes == 3 * each + 4 * interpreter


def test_kept_tensors_alone_may_not_fit(machine: dict[str, int | None]) -> None:
    plan = planned({"reallm": 1, "rules": [{"match": "*", "keep": "source"}]})
    assert choose_workers(plan, 1, 1, CPU).count == 1
    machine["memory"] = 1 << 20
    with pytest.raises(CompileError, match="kept tensors and files: memory is too small"):
        choose_workers(plan, 1, 1, CPU)


GIB = 1 << 30
STAT = "anon 5\ninactive_anon 7\nactive_file 1073741824\ninactive_file 2147483648\nfile 9\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        pytest.param({}, None, id="no control groups"),
        pytest.param({"memory.max": "max\n", "memory.current": "5\n"}, None, id="no limit"),
        pytest.param(
            {"memory.max": f"{8 * GIB}\n", "memory.current": f"{8 * GIB - 50}\n"}, 50, id="full"
        ),
        pytest.param(
            {
                "memory.max": f"{8 * GIB}\n",
                "memory.current": f"{8 * GIB - 50}\n",
                "memory.stat": STAT,
            },
            3 * GIB + 50,
            id="files in memory can be given back",
        ),
        pytest.param(
            {"memory.max": f"{GIB}\n", "memory.current": f"{GIB}\n", "memory.stat": STAT},
            GIB,
            id="never more than the limit",
        ),
        pytest.param(
            {"memory.max": f"{GIB}\n", "memory.current": "7\n", "memory.stat": "active_file\n\n"},
            GIB - 7,
            id="unreadable rows",
        ),
        pytest.param({"memory.max": "much", "memory.current": "7"}, None, id="unreadable limit"),
    ],
)
def test_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], free: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.undo()
    monkeypatch.setattr(system, "CGROUP", tmp_path / "none")
    machine = system.free_memory()
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    assert system._container_memory() == free
    if free is not None and machine is not None and free < machine:
        assert system.free_memory() == free


def test_the_estimate_stands_on_stderr() -> None:
    event = Preflight(
        file_bytes=0,
        disk_bytes=0,
        disk_free_bytes=0,
        memory_bytes=1 << 30,
        memory_free_bytes=2 << 30,
        device="Some GPU",
        workers=3,
        tasks=1,
        tasks_done=0,
        numel=1,
        numel_done=0,
        device_bytes=5_000_000_000,
        device_free_bytes=24_000_000_000,
    )
    assert preflight_lines(event)[-1] == (
        "device  Some GPU, 3 workers, about 5.0 GB of its memory at most, 24.0 GB free"
    )


def test_without_cuda_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "mem_get_info", {None: (7, 9), 1: (8, 9)}.get)
    assert preflight.free_device_memory(CPU) is None
    assert preflight.free_device_memory(GPU) == 7
    assert preflight.free_device_memory(torch.device("cuda:1")) == 8
