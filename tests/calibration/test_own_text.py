"""A text that the model writes itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.calibration import own_text
from reallm_compiler.calibration.events import Sampled
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.stop import Interrupted

SETTINGS: dict[str, Any] = {"own_text": True, "samples": 5, "window": 12, "device": "cpu"}


@pytest.fixture(autouse=True)
def small_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "BATCH", 2)


def test_the_model_writes_its_own_text(tiny_llama: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "1.stats", tmp_path / "2.stats"
    for output, seed in ((one, 0), (other, 1)):
        reallm.calibrate(tiny_llama, output=output, progress=False, seed=seed, **SETTINGS)
    with StatisticsFile(one) as file, StatisticsFile(other) as second:
        assert file.document.tokens == 5 * 11
        assert file.document.settings["own_text"]
        texts = [found.document.provenance["text"] for found in (file, second)]
        assert texts[0] != texts[1]


def test_a_stop_while_it_is_written_keeps_what_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.stats", tmp_path / "out.stats"
    reallm.calibrate(tiny_llama, output=whole, progress=False, **SETTINGS)

    def interrupt(event: Any) -> None:
        if isinstance(event, Sampled):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        reallm.calibrate(tiny_llama, output=output, on_event=interrupt, **SETTINGS)
    events: list[Any] = []
    reallm.calibrate(tiny_llama, output=output, on_event=events.append, **SETTINGS)
    sampled = [event.tokens_done for event in events if isinstance(event, Sampled)]
    assert sampled == [48, 60]
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.stats", "whole.stats"]


def test_drawn_tokens_follow_the_prediction(tiny_llama: Path) -> None:
    """With a cache as without: the text is what the model predicts of the whole prefix."""
    model, _ = reallm.load(tiny_llama, dtype="float32")
    rows = own_text._drawn(model, 0, range(2), 8, 3, torch.device("cpu"))
    seeds = [seed_for(3, f"own text/{number}") for number in range(2)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = torch.stack([torch.rand(8, dtype=torch.float64, generator=one) for one in generators])
    for position in range(1, 8):
        with torch.no_grad():
            logits = model(input_ids=rows[:, :position], use_cache=False).logits[:, -1]
        sums = torch.softmax(logits, -1).double().cumsum(1)
        for row in range(2):
            token = int(rows[row, position])
            below = float(sums[row, token - 1]) if token else 0.0
            assert below - 1e-5 <= uniform[row, position] <= float(sums[row, token]) + 1e-5


def test_text_and_own_text_exclude_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    given = {"output": tmp_path / "o", **SETTINGS}
    with pytest.raises(CalibrateError, match="a text is given"):
        reallm.calibrate(tiny_llama, text=[tiny_llama / "config.json"], **given)
    with pytest.raises(CalibrateError, match="no separator"):
        reallm.calibrate(tiny_llama, separator="|", **given)
