"""Checkpoints that change or hold what cannot be coded; machines that lack what is asked for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.faults.fault_injection import (
    FINISHED,
    QUICK,
    Bench,
    Result,
    ended,
    finished,
    refused,
    tasks_done,
    wait_for_tasks,
)

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("cut", [False, True], ids=["vanishes", "is cut short"])
def test_a_shard_goes(bench: Bench, output: Path, tmp_path: Path, cut: bool) -> None:
    """A shard goes while the run is on; put back as it was, the run goes on."""
    shard = bench.slow / "part1.safetensors"
    aside = tmp_path / "aside"
    process = bench.start(bench.arguments("slow", output))
    wait_for_tasks(process, output, 2)
    os.replace(shard, aside)
    if cut:
        shard.write_bytes(aside.read_bytes()[:50_000])
    try:
        result = ended(process)
    finally:
        os.replace(aside, shard)
    texts = ("ends", "before the end of") if cut else ("No such file", "put the file back")
    refused(result, 4, *texts, str(shard))
    assert tasks_done(output) >= 2
    bench.resumes(output)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(bench: Bench, output: Path, value: float) -> None:
    weight = np.ones((40, 64), np.float32)
    weight[7, 11] = value
    refused(compiled(bench, output, weight), 9, "row 7, column 11", "only.w", "keep")
    assert output.read_bytes() == FINISHED


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(np.zeros((40, 64), np.float32), id="zeros"),
        pytest.param(np.full((1, 1), -0.75, np.float32), id="one weight"),
        pytest.param(np.linspace(-1, 1, 64, dtype=np.float32)[None], id="one row"),
        pytest.param(
            np.vstack([np.full(64, 0.5), np.sin(np.arange(64))]).astype("f4"), id="a constant row"
        ),
    ],
)
def test_what_looks_degenerate(bench: Bench, output: Path, weight: np.ndarray[Any, Any]) -> None:
    """The result is defined: finite, zeros exact, never a failure."""
    finished(compiled(bench, output, weight))
    shown = finished(bench.run(["inspect", str(output), "only.w", "--json"]))
    error = json.loads(shown.out)["relative_error"]
    assert 0 <= error < 0.2, error
    assert weight.any() or error == 0.0


def compiled(bench: Bench, output: Path, weight: np.ndarray[Any, Any]) -> Result:
    """A compile of one matrix over a finished file."""
    output.write_bytes(FINISHED)
    model = output.parent / "model"
    model.mkdir()
    save_file({"only.w.weight": weight}, model / "model.safetensors")
    recipe = output.parent / "recipe.yaml"  # a rule, since one row alone is kept by default
    recipe.write_text(json.dumps({**QUICK, "rules": [{"match": "only.w", "set": {"dora": True}}]}))
    arguments = ["compile", str(recipe), "--model", str(model), "-o", str(output)]
    return bench.run([*arguments, "--device", "cpu", "--force"])


def test_memory_too_small_for_the_largest_matrix(bench: Bench, output: Path) -> None:
    output.write_bytes(FINISHED)
    model = output.parent / "model"
    model.mkdir()
    header = {"big.w.weight": {"dtype": "BF16", "shape": [8192, 8192], "data_offsets": [0, 2**27]}}
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**27)  # a hole: zeros that take no space
    available = interpreter_bytes() + 600 * 2**20

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (available, available))

    arguments = ["compile", str(bench.recipes["quick"]), "--model", str(model), "-o", str(output)]
    result = bench.run([*arguments, "--device", "cpu", "--force"], limit)
    refused(result, 7, "memory is too small", "MiB are needed", "big.w [8192, 8192]")
    assert output.read_bytes() == FINISHED


def interpreter_bytes() -> int:
    """Address space of an interpreter with torch."""
    code = "import torch; print(open('/proc/self/statm').read().split()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")


def test_a_device_that_is_absent(bench: Bench, output: Path) -> None:
    output.write_bytes(FINISHED)
    result = bench.run(bench.arguments("quick", output, "--force", "--device", "cuda"))
    refused(result, 7, "no usable CUDA device", "the device `cpu`")
    assert output.read_bytes() == FINISHED


def test_preflight_and_time_left(bench: Bench, output: Path) -> None:
    """Bytes, memory and device before the first matrix; the time left after the first ones."""
    terminal, other_side = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from reallm_cli.main import run; run()"),
            *bench.arguments("slow", output),
        ],
        stdout=subprocess.DEVNULL,
        stderr=other_side,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(other_side)
    seen = b""
    first = None
    try:
        while part := os.read(terminal, 4096):
            seen += part
            if first is None and b"device" in seen:
                first = tasks_done(output)
    except OSError:  # a terminal whose other side has gone
        pass
    os.close(terminal)
    assert process.wait() == 0
    shown = seen.decode(errors="replace")
    size = f"{len(bench.undisturbed('slow')):,}"
    assert first is not None
    assert first <= 1, first
    for text in ("bytes", "to reserve", "memory  about", "cpu, 1 worker", " left"):
        assert text in shown, (text, shown)
    assert size in shown.replace("_", ","), (size, shown)
