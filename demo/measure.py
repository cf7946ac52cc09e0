"""Measure the shipped model on held-out text, as it is and after naive 2-bit rounding.

The second number says how much there is to lose: a model that survives crude rounding could not
show whether a better method is better.

    python demo/measure.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from train import HERE, perplexity
from transformers import AutoTokenizer, LlamaForCausalLM


def round_to_grid(weight: Tensor, bits: int = 2, block: int = 64) -> Tensor:
    """Round every block of a row to the nearest of `2**bits` even steps within its absmax."""
    top = 2**bits - 1
    parts = []
    for part in torch.split(weight.float(), block, dim=-1):
        peak = part.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
        code = ((part / peak + 1) / 2 * top).round()
        parts.append((code / top * 2 - 1) * peak)
    return torch.cat(parts, dim=-1).to(weight.dtype)


def rounded(model: LlamaForCausalLM, *, output_too: bool) -> LlamaForCausalLM:
    """A copy whose linear weights are rounded, with or without the (tied) output layer."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in result.named_modules():
            if isinstance(module, torch.nn.Linear) and (output_too or name != "lm_head"):
                module.weight.copy_(round_to_grid(module.weight))
    return result


def main() -> None:
    """Print the perplexity of the model as it is and of two rounded copies."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model", trust_remote_code=False)
    model = LlamaForCausalLM.from_pretrained(
        HERE / "model", dtype=torch.float32, trust_remote_code=False
    )
    heldout = (HERE / "heldout.txt").read_text(encoding="ascii")
    ids = torch.tensor(tokenizer(heldout, verbose=False)["input_ids"])
    before = perplexity(model, ids)
    print(f"held-out perplexity: {before:.4f}")
    for label, output_too in (("all linear weights", True), ("all but the output", False)):
        after = perplexity(rounded(model, output_too=output_too), ids)
        print(f"2-bit absmax, block 64, {label}: {after:.4f} ({after / before:.2f} times)")


if __name__ == "__main__":
    main()
