"""The memory estimate: exact where it counts, near what tensors take where it estimates."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import reallm_compiler as reallm
from reallm_compiler.finetune import FinetuneOptions, estimate
from reallm_compiler.finetune.blockwise import _count, _squared
from reallm_compiler.finetune.end_to_end import checkpointed
from reallm_compiler.finetune.loss import VocabularyLoss
from reallm_compiler.models.blocks import calls_of, find_blocks, hidden_states, run_block
from reallm_compiler.models.sequences import Sequences
from reallm_compiler.runtime import open_tunable

LLAMA_13B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def options(**changes: object) -> FinetuneOptions:
    return FinetuneOptions.model_validate(changes)


def peak_bytes(work: Callable[[], None]) -> int:
    """What tensors take at the peak of a piece of work, less what they took before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    sizes = [event.nbytes() for event in found.profiler.kineto_results.events() if event.nbytes()]
    return max(accumulate(sizes))


class Step:
    """Single steps of both stages on a batch of 16 x 64 tokens."""

    def __init__(self, base: Path, precision: str) -> None:
        self.tunable = open_tunable(base, dtype=getattr(torch, precision))
        for _, value in self.tunable.parameters():
            value.requires_grad_(True)
        self.blocks = find_blocks(self.tunable.model, self.tunable.layers)
        ids = torch.randint(3, 200, (16, 64), generator=torch.Generator().manual_seed(0))
        self.sequences = Sequences(ids, torch.full((16,), 64))
        self.calls = calls_of(self.tunable.model, self.blocks, ids[:2])
        self.hidden = hidden_states(self.tunable.model, self.blocks[0].module, ids)

    def block(self) -> None:
        at, mask = torch.arange(16), self.sequences.mask
        output = run_block(
            self.blocks[1].module, self.hidden[at], self.calls.of(1, self.sequences.ids)
        )
        (_squared(output, self.hidden[at], mask) / _count(mask, output)).backward()

    def end(self, teacher: Any, checkpointing: bool) -> None:
        ids, mask = self.sequences.ids, self.sequences.mask
        with checkpointed(self.blocks, checkpointing):
            VocabularyLoss(self.tunable.model, teacher, ids[:2, :4])(ids, mask[:, 1:], 1.0)


@pytest.fixture(scope="module")
def facts(base: Path) -> tuple[Any, dict]:
    with reallm.open(base) as archive:
        return archive.plan, json.loads(dict(archive.files())["config.json"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_takes_what_is_estimated(
    base: Path, facts: tuple[Any, dict], precision: str
) -> None:
    settings = options(window=64, precision=precision, block={"batch": 16}, stages=["block"])
    estimated = estimate(*facts, settings).stages["block"]["activations"]
    step = Step(base, precision)
    step.block()  # gradients are there from now on
    assert peak_bytes(step.block) == pytest.approx(estimated, rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("loss", ["next_token", "distill"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_whole_takes_what_is_estimated(
    base: Path, facts: tuple[Any, dict], precision: str, loss: str, checkpointing: bool
) -> None:
    settings = options(
        window=64,
        precision=precision,
        checkpointing=checkpointing,
        e2e={"batch": 16, "loss": loss},
        stages=["e2e"],
    )
    terms = estimate(*facts, settings).stages["e2e"]
    step = Step(base, precision)
    teacher = None
    if loss == "distill":
        teacher, _ = reallm.load(base, dtype=getattr(torch, precision))
    step.end(teacher, checkpointing)
    taken = peak_bytes(lambda: step.end(teacher, checkpointing))
    assert taken == pytest.approx(terms["activations"] + terms["logits"], rel=0.15)


def test_what_is_counted_is_exact(base: Path, adapter: Path) -> None:
    tunable = open_tunable(base)
    numbers = sum(value.numel() for _, value in tunable.parameters())
    with reallm.open(base) as archive:
        config = json.loads(dict(archive.files())["config.json"])
        found = estimate(archive.plan, config, options(stages=["e2e"]))
    terms = found.stages["e2e"]
    assert found.tuned == numbers
    assert terms["factors and gains"] == 4 * numbers
    assert terms["gradients"] == 8 * numbers  # those of a batch beside the sum of several
    assert terms["optimizer states"] == 8 * numbers
    coded = sum(layer.coded.numel() for layer in tunable.layers.values())
    assert terms["coded weights"] == 4 * coded
    assert found.host == 0
    packed = open_tunable(base, mode="packed")
    with reallm.open(base) as archive:
        found = estimate(archive.plan, config, options(stages=["e2e"]), packed=True)
    weights: list[Any] = [layer.coded for layer in packed.layers.values()]
    sections = sum(weight.nbytes_stored for weight in weights)
    assert found.stages["e2e"]["coded weights"] == sections


def test_13_billion_weights_fit_40_gigabytes(tmp_path: Path) -> None:
    """The paper's claim, with activations computed again and sequences of 2048 tokens."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_13B))
    plan = reallm.plan("paper-2bit", model=tmp_path / "config.json")
    settings = options(precision="bfloat16", checkpointing=True, block={"batch": 1})
    found = estimate(plan, LLAMA_13B, settings)
    assert found.tuned > 200_000_000
    assert 30e9 < found.total("e2e") < 40e9
    assert found.total("block") < found.total("e2e")
    packed = estimate(plan, LLAMA_13B, settings, packed=True)
    assert packed.total("e2e") < 20e9
    without = estimate(plan, LLAMA_13B, settings.model_copy(update={"checkpointing": False}))
    assert without.total("e2e") > 40e9
