"""The recipe `autoround` beside AutoRound as llm-compressor runs it: divergence at equal bits.

    python benchmarks/autoround.py theirs --model FOLDER --text FILE --valid FILE
    python benchmarks/autoround.py ours   --model FOLDER --text FILE --valid FILE

Both code the linear layers with 2 bits in groups of 64 with integer zero points, and learn on as
many sequences of the text, 8 at a step, in as many steps, with signs of gradients whose rate falls
to 0. Printed is KL(original || coded) on the second text, in windows. Embeddings are kept.

llm-compressor and auto-round are not part of `.[comparisons]`: they want certain versions of
transformers. Install them and this project into an environment of their own.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import reallm_compiler as reallm
from benchmarks.awq import IGNORED, sequences_of
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from reallm_compiler.recipe import load_recipe

BITS, GROUP, BATCH = 2, 64, 8


def theirs(folder: Path, text: Path, sequences: int, window: int, epochs: int) -> Any:
    """The model as AutoRound leaves it."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.autoround import AutoRoundModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    rows = sequences_of(folder, text, sequences, window)
    masks = [[1] * window] * len(rows)
    weights = {"num_bits": BITS, "type": "int", "symmetric": False, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": {**weights, "group_size": GROUP}}
    return oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": masks}),
        recipe=AutoRoundModifier(
            ignore=IGNORED,
            config_groups={"group_0": group},
            iters=epochs * sequences // BATCH,
            batch_size=BATCH,
            enable_torch_compile=False,
        ),
        num_calibration_samples=sequences,
        max_seq_length=window,
        shuffle_calibration_samples=False,
    )


def ours(folder: Path, text: Path, sequences: int, window: int, epochs: int) -> Any:
    """The model as an archive of the recipe has it."""
    fit = load_recipe("autoround").fit
    assert fit is not None  # blocks learn by it
    changed = {"samples": sequences, "window": window, "epochs": epochs, "batch": BATCH}
    kept = {"role": ["embedding", "head"], "keep": "source"}
    recipe = {
        "reallm": 1,
        "extends": "autoround",
        "fit": {**fit.model_dump(mode="json"), **changed},
        "rules": [kept],
    }
    with TemporaryDirectory() as made:
        path = Path(made, "x.reallm")
        reallm.compile(recipe, model=folder, output=path, text=text, device="cpu", workers=1)
        return load_for_evaluation(path)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("ours", "theirs"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--bytes", type=int, default=40000, help="of the text for the divergence")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    began = time.process_time()
    make = {"ours": ours, "theirs": theirs}[given.which]
    model = make(given.model, given.text, given.sequences, given.window, given.epochs).float()
    seconds = time.process_time() - began
    original, tokenizer = load_for_evaluation(given.model)
    valid = given.valid.read_bytes()[: given.bytes].decode(errors="ignore")
    found = evaluate(model, tokenizer, valid, window=given.window, reference=original)
    print(f"{given.which}: KL {found.kl:.4f}, perplexity {found.perplexity:.3f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
