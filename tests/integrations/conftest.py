"""A small model whose layers the formats of other programs can hold, and archives of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm

BF16 = {"dtype": "bfloat16"}
PLANS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {
        "scales": {"kind": "absmax", "block": 64, "bits": 8, "superblock": 16},
        "quantizer": {"kind": "normal_float", "bits": 4},
    },
    "symmetric": {
        "scales": {"kind": "affine", "code_bits": 4, "symmetric": True, "block": 32, **BF16},
        "quantizer": {"kind": "uniform", "bits": 4},
    },
    "asymmetric": {
        "scales": {"kind": "affine", "code_bits": 8, "block": 64, **BF16},
        "quantizer": {"kind": "uniform", "bits": 8},
    },
    "sorted": {
        "permutation": {"kind": "norm_sorted"},
        "scales": {"kind": "affine", "code_bits": 4, "symmetric": True, "block": 64, **BF16},
        "quantizer": {"kind": "uniform", "bits": 4},
    },
    "rows": {
        "scales": {"kind": "affine", "code_bits": 2, "symmetric": True, "per": "row", **BF16},
        "quantizer": {"kind": "uniform", "bits": 2},
    },
}


@pytest.fixture(scope="session")
def model_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of 2 layers in bf16, with a head of its own and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    shutil.copy(tiny_llama / "tokenizer.json", folder)
    settings = json.loads((tiny_llama / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    known = json.loads((tiny_llama / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=known["vocab_size"],
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def archive_of(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An archive of the small model by a plan of `PLANS`, or by one that is given."""
    made: dict[str, Path] = {}

    def make(name: str, plan: Mapping[str, Any] | None = None) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("archives") / f"{name}.reallm"
            recipe = {"reallm": 1, "defaults": dict(PLANS[name] if plan is None else plan)}
            reallm.compile(recipe, model=model_folder, output=path, device="cpu", progress=False)
            made[name] = path
        return made[name]

    return make
