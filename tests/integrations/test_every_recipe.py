"""Every shipped recipe on a small model: planned, compiled, run from its codes, tuned, exported."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import ExportError
from reallm_compiler.finetune import finetune
from reallm_compiler.integrations.formats import (
    BITSANDBYTES,
    COMPRESSED_TENSORS,
    FORMATS,
    GGUF,
    GPTQ,
    HF,
)
from reallm_compiler.reader.verify import verify
from reallm_compiler.recipe import list_shipped, load_recipe
from tests.conftest import copy_tokenizer

SMALL: dict[str, dict[str, Any]] = {
    "paper-hnerv": {
        "autoencoder": {"patch": 64, "latent": [4, 8, 8], "decoder_params": 20000, "epochs": 2}
    },
}
"""What is smaller here than as shipped, for minutes and not hours."""
INTEGERS = {COMPRESSED_TENSORS, GPTQ}
HELD: dict[str, set[str]] = {
    **dict.fromkeys(
        (
            *("int4", "gptq-2bit", "gptq-4bit", "quarot-2bit", "quarot-4bit"),
            *("awq-4bit-folded", "autoround", "omniquant"),
        ),
        INTEGERS,
    ),
    "gptq-2bit-act-order": {GPTQ},
    "gptq-4bit-act-order": {GPTQ},
    "nf4": {BITSANDBYTES},
}
"""Formats of other programs that hold a recipe's codes (docs/export.md), beside those for all."""
FOR_ALL = {HF} if importlib.util.find_spec("gguf") is None else {HF, GGUF}
TUNING = {
    "window": 16,
    "held_out": 2,
    "learn": ["factors", "gains", "rows", "scales", "tables", "norms"],
    "block": {"lr": 1e-3, "batch": 4, "epochs": 1, "patience": 1},
    "e2e": {"lr": 1e-3, "batch": 2, "accumulation": 1, "steps": 2, "checks": 1},
}


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose rows are whole groups of 128 weights and whose embeddings are coded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_llama)
    for key in ("hidden_size", "intermediate_size"):
        setattr(config, key, 256)
    config.num_hidden_layers, config.head_dim = 1, 64
    folder = tmp_path_factory.mktemp("models") / "wide"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tiny_llama, folder)
    return folder


@pytest.fixture(scope="module")
def measured(model: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "model.stats"
    given = {"samples": 16, "window": 16, "device": "cpu", "progress": False}
    reallm.calibrate(model, text=[words], output=path, **given)
    return path


@pytest.fixture
def compiled(model: Path, words: Path, measured: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        recipe = load_recipe(name)
        document: dict[str, Any] = {"reallm": 1, "extends": name}
        inputs: dict[str, Any] = {}
        if name in SMALL:
            document["defaults"] = SMALL[name]
        if recipe.fit is not None:
            fit = recipe.fit.model_dump(mode="json")
            document["fit"] = {**fit, "epochs": 1, "samples": 8, "window": 16}
            inputs["text"] = words
        if recipe.statistics == "required":
            inputs["statistics"] = measured
        path = tmp_path / "x.reallm"
        budget = reallm.plan(document, model=model).budget()
        reallm.compile(document, model=model, output=path, device="cpu", progress=False, **inputs)
        assert path.stat().st_size == budget.totals.file_bytes
        return path

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", list_shipped())
def test_it_goes_all_the_way(
    name: str,
    compiled: Callable[[str], Path],
    model: Path,
    words: Path,
    tmp_path: Path,
) -> None:
    archive = compiled(name)
    assert verify(archive) == []
    options: dict[str, Any] = {"text": words, "window": 16, "progress": False}
    dense = reallm.eval(archive, reference=model, **options)
    assert dense.kl is not None
    packed = reallm.eval(archive, mode="packed", **options)
    assert packed.loss == pytest.approx(dense.loss, rel=1e-4)
    tuned = tmp_path / "x.adapter"
    finetune(archive, model=model, text=[words], output=tuned, options=TUNING)
    assert reallm.eval(archive, adapter=tuned, **options).loss != dense.loss
    held, refused = set(), {}
    for to in FORMATS:
        try:
            reallm.export(archive, tmp_path / to, to=to, progress=False)
        except ExportError as error:
            refused[to] = error
        else:
            held.add(to)
    assert held == FOR_ALL | HELD.get(name, set()), refused
    assert all(error.hint for error in refused.values())
