"""Who works with a prepared archive knows its original: resume, finetune, eval."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.errors import ResumeError
from reallm_compiler.execute.events import TaskDone
from tests.prepare.blocks import tuned_blocks

RECIPE: dict[str, Any] = {
    "reallm": 1,
    "prepare": [{"kind": "fold_norms"}, {"kind": "rotate"}],
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2},
        "scales": {"kind": "absmax", "per": "row"},
        "quantizer": {"kind": "uniform", "bits": 8},
    },
    "rules": [{"match": "lm_head", "keep": "source"}],
}


class Killed(Exception):  # noqa: N818 - it stands for a kill, not an error
    pass


def compiled(model: Path, output: Path, **options: Any) -> Any:
    options = {"workers": 1, "device": "cpu", **options}
    return reallm.compile(RECIPE, model=model, output=output, progress=False, **options)


def killed(model: Path, output: Path, tasks: int) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == tasks:
            raise Killed

    with pytest.raises(Killed):
        compiled(model, output, on_event=stop)


@pytest.fixture
def prepared(tiny_llama: Path, tmp_path: Path) -> Path:
    """An archive of the rotated tiny Llama, nearly lossless."""
    compiled(tiny_llama, tmp_path / "whole.reallm")
    return tmp_path / "whole.reallm"


def test_a_killed_compile_goes_on_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, prepared: Path
) -> None:
    again = tmp_path / "again.reallm"
    killed(tiny_llama, again, 5)
    assert compiled(tiny_llama, again).tasks_resumed == 5
    assert again.read_bytes() == prepared.read_bytes()


def test_a_folded_norm_that_changed_is_noticed(
    tiny_llama: Path, tmp_path: Path, negate: Callable[[Path, str], None]
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    killed(model, tmp_path / "x.reallm", 3)
    negate(model, "model.layers.0.post_attention_layernorm.weight")
    with pytest.raises(ResumeError, match=r"layers\.0\.post_attention_layernorm"):
        compiled(model, tmp_path / "x.reallm")


def test_tuning_follows_the_original_prepared_alike(
    tiny_llama: Path, words: Path, tmp_path: Path, prepared: Path
) -> None:
    """Its blocks read and write the rotated stream, so that nearly nothing is left to learn."""
    blocks = tuned_blocks(prepared, tiny_llama, words, tmp_path / "x.adapter")
    assert len(blocks) == 2
    assert all(block.before < 1e-6 for block in blocks)


def test_eval_reports_the_distance_to_the_original(
    tiny_llama: Path, words: Path, prepared: Path
) -> None:
    found = reallm.eval(prepared, text=words, window=16, reference=tiny_llama, progress=False)
    assert found.kl is not None
    assert found.kl < 1e-4


def test_a_heatmap_is_of_the_prepared_matrix(
    tiny_llama: Path, tmp_path: Path, prepared: Path
) -> None:
    pytest.importorskip("matplotlib")
    from reallm_compiler.evaluate.heatmap import heatmap

    name = "model.layers.0.self_attn.q_proj"
    drawn = heatmap(prepared, name, tmp_path / "x.png", model=tiny_llama)
    assert drawn.relative_error == pytest.approx(drawn.stored_error, rel=0.1)
    assert drawn.relative_error < 0.02
