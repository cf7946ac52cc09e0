"""Models that are no plain stack of linear layers: experts, joined and transposed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import reallm_compiler as reallm
from reallm_compiler.calibration import probe as probe_module
from reallm_compiler.calibration.events import Started
from reallm_compiler.calibration.original import Original
from reallm_compiler.checkpoint import open_source
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.models.blocks import UnfitBlocksError
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.statistics import measured_matrices
from tests.conftest import copy_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "experts joined on loading": ("MixtralConfig", "MixtralForCausalLM", EXPERTS),
    "experts stacked and transposed": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**EXPERTS, "head_dim": 8},
    ),
    "transposed weights": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "bos_token_id": 0}),
    "joined in the checkpoint": ("Phi3Config", "Phi3ForCausalLM", SIZES),
}


def saved(name: str, tiny_llama: Path, folder: Path) -> Path:
    config, model, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made.save_pretrained(folder)
    copy_tokenizer(tiny_llama, folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_matrices_lie_where_the_products_are_looked_for(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    inventory = open_source(saved(name, tiny_llama, tmp_path / "m"))
    facts = measured_matrices(inventory)
    original = Original(inventory, facts, torch.device("cpu"))
    assert original.unknown == ()
    weights = Weights(inventory)
    by_name = {fact.name: fact for fact in facts}
    seen = set()
    for number in range(len(original.blocks)):
        with original.loaded(number):
            for values, inside in original.memory._known.values():
                for one in inside:
                    fact = by_name[one.name]
                    wanted = weights.matrix(fact.tensor, fact.index, transposed=fact.transposed)
                    found = values.as_strided(one.shape, one.strides, one.offset)
                    assert torch.equal(found, wanted.float()), one.name
                    seen.add(one.name)
    assert seen == set(by_name)
    assert original.block_bytes() > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_is_measured(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path, name: str
) -> None:
    model, path = saved(name, tiny_llama, tmp_path / "m"), tmp_path / "o.stats"
    report = reallm.calibrate(model, output=path, **settings)
    assert report.left_out == ()
    with StatisticsFile(path) as file:
        for row in file.rows.values():
            found = file.read(row.name)
            reached = file.facts(row.name).reached
            assert (reached > 0) == (float(found.inputs.diagonal().sum()) > 0)
            if row.output_form != "none" and reached:
                assert found.energy > 0
                assert found.weighted_outputs.diagonal().min() >= 0
    assert reallm.verify(path) == []


def test_experts_together_get_every_token_as_often_as_it_is_sent(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = saved("experts joined on loading", tiny_llama, tmp_path / "m")
    path = tmp_path / "o.stats"
    report = reallm.calibrate(model, output=path, **settings)
    prefix = "model.layers.0.block_sparse_moe.experts"
    with StatisticsFile(path) as file:
        counts = [file.facts(f"{prefix}.{expert}.w1").reached for expert in range(4)]
        assert sum(counts) == 2 * report.tokens
        assert [file.facts(f"{prefix}.{expert}.w2").reached for expert in range(4)] == counts
        assert file.rows[f"{prefix}.3.w3"].inputs == f"{prefix}.3.w1"
        together = sum(file.read(f"{prefix}.{expert}.w1").inputs for expert in range(4))
    # Tokens reach the experts after a norm with gains of 1: their mean square is 1.
    assert float(together.diagonal().sum()) == pytest.approx(2 * 32, rel=0.05)  # less its epsilon
    assert set(report.few) >= {
        f"{prefix}.{expert}.w2" for expert in range(4) if 0 < counts[expert] < 48
    }


def test_a_model_that_is_run_as_a_whole_has_the_same_statistics(
    tiny_llama: Path,
    settings: dict[str, Any],
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> None:
        raise UnfitBlocksError("no", location="model.layers.1", note="it needs a friend")

    monkeypatch.setattr(probe_module, "calls_of", refuse)
    path, events = tmp_path / "whole.stats", []
    reallm.calibrate(tiny_llama, output=path, **settings, on_event=events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.blocks == 0
    assert any("as a whole: model.layers.1: it needs a friend" in note for note in started.notes)
    with StatisticsFile(path) as file, StatisticsFile(measured) as other:
        assert list(file.rows) == list(other.rows)
        for name in file.rows:
            one, two = file.read(name), other.read(name)
            assert torch.equal(one.inputs, two.inputs)
            assert one.energy is None or one.energy == pytest.approx(two.energy, rel=1e-12)
            if one.outputs is not None:
                assert torch.equal(one.outputs, two.outputs)
