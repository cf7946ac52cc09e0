"""End-to-end tuning steps against peft LoRA on a bitsandbytes NF4 base of the same model.

    python benchmarks/finetune_speed.py --model PATH/TO/FOLDER --batch 4 --window 256

Both tune factors of the same rank on all linear layers of the same model, with Adam on the same
batches, in turns within one run. Each side is timed by the CPU time of the process, which other
processes on the machine do not disturb, and by the wall clock; on cuda only the wall clock counts.
The median step of each is printed. `peft` and `bitsandbytes` are needed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import reallm_compiler as reallm
from benchmarks.timing import Timer
from reallm_compiler.runtime import open_tunable

RECIPE: dict[str, Any] = {
    "reallm": 1,
    "defaults": {
        "residual": {"kind": "low_rank", "dtype": "float16"},
        "scales": {"kind": "absmax", "per": "block", "block": 64, "bits": 8},
        "quantizer": {"kind": "normal_float", "bits": 4},
    },
}


class Side:
    """A model whose factors are tuned, and its optimizer."""

    def __init__(self, name: str, model: Any, parameters: Iterable[torch.Tensor]) -> None:
        self.name = name
        self.model = model.eval()
        self.parameters = list(parameters)
        self.adam = torch.optim.Adam(self.parameters, lr=1e-4, foreach=False)

    def step(self, ids: torch.Tensor) -> None:
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if ids.is_cuda:
            torch.cuda.synchronize()


def ours(folder: Path, rank: int, dora: bool, device: str) -> Side:
    recipe: dict[str, Any] = {**RECIPE, "defaults": {**RECIPE["defaults"], "dora": dora}}
    recipe["defaults"]["residual"] = {**recipe["defaults"]["residual"], "rank": rank}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "base.reallm"
        reallm.compile(recipe, model=folder, output=path, workers=1)
        tunable = open_tunable(path, dtype=torch.float32, device=device)
    parameters = [value for _, value in tunable.parameters()]
    return Side("reallm" + (", DoRA" if dora else ""), tunable.model, parameters)


def theirs(folder: Path, rank: int, dora: bool, device: str) -> Side:
    import peft
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantized,
        dtype=torch.float32,
        device_map=device,
        trust_remote_code=False,
    )
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, config)
    name = "peft on bitsandbytes NF4" + (", DoRA" if dora else "")
    return Side(name, tuned, [value for value in tuned.parameters() if value.requires_grad])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = [
        make(given.model, given.rank, dora, given.device)
        for dora in (False, True)
        for make in (ours, theirs)
    ]
    vocabulary = sides[0].model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    timer = Timer()
    for number in range(given.steps + 1):
        timer = Timer() if number == 1 else timer  # the first step warms up
        shape = (given.batch, given.window)
        ids = torch.randint(3, vocabulary, shape, generator=generator).to(given.device)
        for side in sides:
            timer.run(side.name, partial(side.step, ids))
    print(f"batch {given.batch} x {given.window}, rank {given.rank}, {given.device}, one thread\n")
    print("| tuned | parameters | CPU seconds per step | wall seconds per step |")
    print("|---|---|---|---|")
    for side in sides:
        count = sum(value.numel() for value in side.parameters)
        cpu, wall = (timer.median(side.name, clock) for clock in ("cpu", "wall"))
        print(f"| {side.name} | {count:,} | {cpu:.3f} | {wall:.3f} |")


if __name__ == "__main__":
    main()
