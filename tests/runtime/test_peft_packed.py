"""peft over a packed model, with no registration: LoRA and DoRA train, save and merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.runtime.packed import packed_weights

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft looks for a base on the Hub
]

TOKENS = torch.arange(1, 25).view(2, 12)
TARGETS = ["q_proj", "v_proj", "down_proj"]
RECIPE = {
    "reallm": 1,
    "defaults": {
        "transform": [{"kind": "hadamard", "block": 16}],
        "scales": {"kind": "rms", "per": "row"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2, "iterations": 4},
    },
}


@pytest.fixture(scope="module")
def archive(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peft") / "tiny.reallm"
    reallm.compile(RECIPE, model=tiny_llama, output=path, workers=1)
    return path


def model_of(archive: Path, mode: Any) -> Any:
    return reallm.load(archive, mode=mode, dtype="float32")[0]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


def trained(model: Any, *, dora: bool, steps: int = 3) -> tuple[Any, list[float]]:
    config = peft.LoraConfig(target_modules=TARGETS, r=4, use_dora=dora, lora_alpha=8)
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_training_over_codes_is_training_over_the_decoded_model(
    archive: Path, dora: bool, tmp_path: Path
) -> None:
    dense, wanted = trained(model_of(archive, "dense"), dora=dora)
    packed, found = trained(model_of(archive, "packed"), dora=dora)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[-1] < found[0]
    assert all(weight.packed for weight in packed_weights(packed).values())

    packed.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(model_of(archive, "packed"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(packed))

    before = logits(packed)
    merged = packed.merge_and_unload(safe_merge=dora)
    assert (logits(merged) - before).norm() < 1e-3 * before.norm()
    weights = packed_weights(merged)
    dense_now = {name for name, weight in weights.items() if not weight.packed}
    assert dense_now == {name for name in weights if name.split(".")[-2] in TARGETS}
    reference = dense.merge_and_unload()
    assert (logits(merged) - logits(reference)).norm() < 1e-2 * before.norm()
