"""A text in shards: the same sums but for rounding, and the same bytes however it was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.calibration import run as run_module
from reallm_compiler.calibration.events import ChunkDone, Started
from reallm_compiler.calibration.job import CalibrateJob
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.run import _check_cluster
from reallm_compiler.calibration.schedule import Measurement
from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.calibration.shards import ShardedSchedule, shards_of
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.machines import ThisMachine
from reallm_compiler.runs.training import StateFiles
from tests.calibration.test_interrupted import killed


@pytest.fixture(scope="module")
def sharded(
    tiny_llama: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Statistics over two shards."""
    path = tmp_path_factory.mktemp("sharded") / "tiny.stats"
    reallm.calibrate(tiny_llama, output=path, shards=2, **settings)
    return path


def test_the_sums_are_those_of_the_whole_text(measured: Path, sharded: Path) -> None:
    with StatisticsFile(measured) as whole, StatisticsFile(sharded) as parts:
        assert whole.rows.keys() == parts.rows.keys()
        cpu = torch.device("cpu")
        for name in whole.rows:
            assert whole.facts(name) == parts.facts(name)
            one, other = whole.read(name, cpu), parts.read(name, cpu)
            for field in one.__dataclass_fields__:
                values, others = getattr(one, field), getattr(other, field)
                if isinstance(values, torch.Tensor):
                    torch.testing.assert_close(values, others)
    assert measured.read_bytes() != sharded.read_bytes()  # the setting is stated


def test_a_run_that_is_killed_ends_with_the_same_bytes(
    tiny_llama: Path, settings: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.stats"
    given = {**settings, "shards": 2, "workers": 2}
    struck = sum(killed(n, tiny_llama, output, given) for n in (3, 9, 20, 33, 47, 66))
    assert struck >= 5
    counts: list[tuple[int, int]] = []

    def on_event(event: Any) -> None:
        if isinstance(event, ChunkDone):
            counts.append((event.steps_done, event.steps))

    reallm.calibrate(tiny_llama, output=output, force=True, **given, on_event=on_event)
    assert output.read_bytes() == sharded.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.stats"]
    done = [count for count, _ in counts]
    assert done == sorted(done)
    assert done[-1] == counts[-1][1]


def test_a_model_that_is_tried_where_the_work_is_done_gives_the_same_bytes(
    tiny_llama: Path,
    settings: dict[str, Any],
    sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(**given: Any) -> CalibrateJob:
        return CalibrateJob(**{**given, "probed": None})

    monkeypatch.setattr(run_module, "CalibrateJob", elsewhere)
    output = tmp_path / "out.stats"
    reallm.calibrate(tiny_llama, output=output, shards=2, **settings)
    assert output.read_bytes() == sharded.read_bytes()


def chunks(count: int) -> list[Chunk]:
    return [Chunk(torch.zeros(2, 3, dtype=torch.int64), (2 * n, 2 * n + 1)) for n in range(count)]


@pytest.mark.parametrize(("count", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (9, [1] * 5)])
def test_shards_are_even_and_none_is_empty(count: int, sizes: list[int], tmp_path: Path) -> None:
    found = shards_of(chunks(5), count, StateFiles(tmp_path / "o", "run"), 4)
    assert [len(shard.chunks) for shard in found] == sizes
    assert [shard.before for shard in found] == [sum(sizes[:n]) for n in range(len(sizes))]


def test_shards_do_not_wait_for_each_other(tmp_path: Path) -> None:
    measurement = Measurement(rows=(), stem=(), parts=((), ()), tail=(), gradients=True)
    found = shards_of(chunks(4), 2, StateFiles(tmp_path / "o", "run"), 4)
    graph = ShardedSchedule(measurement, found, 4).tasks()
    for task in graph.tasks:
        assert {need.partition("@")[2] for need in task.needs} <= {task.key.partition("@")[2]}


def test_a_cluster_must_share_storage_and_draw_the_same_text() -> None:
    machines, options = ThisMachine(torch.device("cpu")), CalibrateOptions(own_text=True)
    apart = ClusterOptions(address="auto")
    with pytest.raises(CalibrateError, match="storage that all nodes share"):
        _check_cluster(apart, machines, options)
    together = ClusterOptions(address="auto", shared_storage=True)
    for cluster in (None, together, ClusterOptions(address="local")):
        _check_cluster(cluster, machines, options)
    other: Any = SimpleNamespace(fields={"compute": "cpu ABACUS"})
    with pytest.raises(CalibrateError, match="of another kind"):
        _check_cluster(together, other, options)
    _check_cluster(together, other, CalibrateOptions())


def test_sums_of_shards_are_counted(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    started: list[Started] = []

    def on_event(event: Any) -> None:
        if isinstance(event, Started):
            started.append(event)

    for shards in (1, 3):
        output = tmp_path / f"{shards}.stats"
        reallm.calibrate(tiny_llama, output=output, shards=shards, **settings, on_event=on_event)
    one, three = started
    assert three.memory_bytes > one.memory_bytes
    assert three.disk_bytes > one.disk_bytes
    assert three.tasks > 3 * one.tasks
