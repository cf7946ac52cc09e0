"""Which files are there when, and that fewer of them change no byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import reallm_compiler as reallm
from reallm_compiler.calibration import schedule as schedule_module
from reallm_compiler.calibration.events import Started
from reallm_compiler.calibration.schedule import DISK_LIMIT, Measurement, Schedule
from reallm_compiler.codecs.statistics_file import StatisticsFile
from tests.conftest import copy_tokenizer


def measurement(blocks: int, *, gradients: bool = True) -> Measurement:
    return Measurement(rows=(), stem=(), parts=((),) * blocks, tail=(), gradients=gradients)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("file_bytes", [1, DISK_LIMIT], ids=["all kept", "some made again"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 9, 16, 33])
def test_every_file_is_there_when_it_is_read(blocks: int, file_bytes: int, gradients: bool) -> None:
    made = Schedule(measurement(blocks, gradients=gradients), file_bytes)
    there: set[str] = set()
    most, done = 0, set()
    for one in made.passes:
        assert made.needed(done) == made.live(one.key) <= there
        there &= made.live(one.key)
        assert set(one.reads) <= there
        there |= {one.writes} if one.writes is not None else set()
        most = max(most, len(there))
        done.add(one.key)
    assert made.needed(done) == set()
    assert most * file_bytes <= made.disk_bytes()
    backward = [one.key for one in made.passes if one.key.startswith("backward")]
    assert backward == [f"backward:{k}" for k in reversed(range(blocks))] * gradients
    if file_bytes > 1 and gradients and blocks > 1:
        assert made.disk_bytes() <= (2 * blocks**0.5 + 5) * file_bytes
    if not gradients:
        assert made.disk_bytes() == 2 * file_bytes


def with_tokenizer(model: Any, tiny_llama: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    copy_tokenizer(tiny_llama, folder)
    return folder


def test_states_that_are_made_again_change_no_byte(
    tiny_llama: Path,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = with_tokenizer(LlamaForCausalLM(config), tiny_llama, tmp_path / "m")
    disk = []
    for limit in (DISK_LIMIT, 0):
        monkeypatch.setattr(schedule_module, "DISK_LIMIT", limit)
        events: list[Any] = []
        output = tmp_path / f"{limit}.stats"
        reallm.calibrate(model, output=output, **settings, on_event=events.append)
        disk += [event.disk_bytes for event in events if isinstance(event, Started)]
    one, two = (tmp_path / f"{limit}.stats" for limit in (DISK_LIMIT, 0))
    assert one.read_bytes() == two.read_bytes()
    assert disk[1] < disk[0]


def test_what_stands_before_the_blocks_has_its_inputs_alone(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = OPTConfig(
        vocab_size=320,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        do_layer_norm_before=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = with_tokenizer(OPTForCausalLM(config), tiny_llama, tmp_path / "m")
    output = tmp_path / "o.stats"
    reallm.calibrate(model, output=output, **settings)
    with StatisticsFile(output) as file:
        forms = {name: row.output_form for name, row in file.rows.items()}
        before = "model.decoder.project_in"
        assert forms[before] == "none"
        assert file.facts(before).reached == file.document.tokens
        assert forms["model.decoder.project_out"] == "full"
        assert file.read("model.decoder.project_out").energy
