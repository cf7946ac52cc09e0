"""Calibrated methods of llm-compressor on a whole model, by its own pipeline.

It runs a model block by block on the calibration text, each block on what the blocks before it have
become. Weights are asymmetric in groups, all else as it comes: GPTQ with static activation order,
AutoRound (which needs the package `auto-round`) with 200 iterations, AWQ with its search of scales.
Bits are those of the tensors that the saved model holds for its matrices, numbers with a
fraction counted at 16 bits: this model runs in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.text import draw_sequences

PACKAGE = "llmcompressor"

SAMPLES = 256
"""Sequences of the calibration text, those that `reallm calibrate` draws."""

Modifiers = Callable[[dict[str, Any]], list[Any]]
"""What the library calls `config_groups` -> the modifiers of a recipe of its own."""


def gptq(groups: dict[str, Any]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return [GPTQModifier(config_groups=groups, ignore=["lm_head"])]


def awq(groups: dict[str, Any]) -> list[Any]:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


def auto_round(groups: dict[str, Any]) -> list[Any]:
    from llmcompressor.modifiers.autoround import AutoRoundModifier

    return [AutoRoundModifier(config_groups=groups, ignore=["lm_head"], iters=200)]


def coded(
    modifiers: Modifiers, bits: int, group: int, folder: Path, text: Path, window: int
) -> tuple[Any, int]:
    """A checkpoint as the library codes it, in float32, and the bits of its matrices."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    options = CalibrateOptions(samples=SAMPLES, window=window)
    texts = [text.read_text(encoding="utf-8")]
    sequences = draw_sequences(tokenizer, texts, window, options)
    ones = [[1] * len(sequence) for sequence in sequences]
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group,
    }
    model = oneshot(
        model=AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ),
        dataset=Dataset.from_dict({"input_ids": sequences, "attention_mask": ones}),
        recipe=modifiers({"group_0": {"targets": ["Linear"], "weights": weights}}),
        num_calibration_samples=len(sequences),
        max_seq_length=window,
        shuffle_calibration_samples=False,
    )
    matrices = {name for name, module in model.named_modules() if hasattr(module, "weight_scale")}
    found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    found.load_state_dict(model.state_dict(), strict=False)  # without its hooks and scales
    return found.eval(), stored_bits(model, matrices)


def stored_bits(model: Any, matrices: set[str]) -> int:
    """Bits of the sections of matrices in the saved model, which is compressed by that."""
    from safetensors import safe_open

    bits = 0
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_compressed=True)
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    if name.rpartition(".")[0] in matrices:
                        tensor = file.get_tensor(name)
                        width = 16 if tensor.is_floating_point() else 8 * tensor.element_size()
                        bits += tensor.numel() * width
    return bits


def methods() -> list[tuple[str, Callable[[Path, Path, int], tuple[Any, int]]]]:
    """Name and maker of each: (checkpoint, text, window) -> the coded model and its bits."""
    found: list[tuple[str, Callable[[Path, Path, int], tuple[Any, int]]]] = []
    for name, modifiers in (("GPTQ", gptq), ("AWQ", awq), ("AutoRound", auto_round)):
        for bits in (2, 3, 4):
            for group in (32, 128):
                label = f"{name} {bits} bit g{group}"
                found.append((label, partial(coded, modifiers, bits, group)))
    return found
