"""Products with packed matrices against torch's dense ones in bfloat16, on the CPU.

    pip install '.[fast,comparisons]'
    python -m benchmarks.packed_linear                         # one token, 4096 x 4096
    REALLM_KERNELS=avx2 python -m benchmarks.packed_linear     # as a processor without AVX-512
    python -m benchmarks.packed_linear --tokens 512            # many tokens
    python -m benchmarks.packed_linear --model                 # a token of a whole model

Codes are random: how fast they are read does not depend on them. Each call takes the next of as
many matrices as fill `--cold` megabytes, so that none comes from a cache; calls alternate with
torch's `linear` (and bitsandbytes' NF4, where it is installed), and the medians of the ratios are
printed. Speed counts activations in and results out: transforms, factors and gains included.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import random_sections
from benchmarks.timing import add_options, conditions, interleaved
from reallm_compiler.kernels import jit
from reallm_compiler.kernels.choose import product_for
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of

ROTATED = {"transform": [{"kind": "hadamard"}], "scales": {"kind": "rms", "per": "tensor"}}
ROW = {"kind": "rms", "per": "row", "dtype": "float16"}
VECTORS = {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}, "scales": ROW}
TRELLIS = {"kind": "trellis", "bits": "35/16"}
CASES: dict[str, dict[str, Any]] = {
    "trellis 35/16, 10 bits of state (reallm-2bit)": {**ROTATED, "quantizer": TRELLIS},
    "trellis 35/16, 8 bits of state": {**ROTATED, "quantizer": {**TRELLIS, "state_bits": 8}},
    "trellis 4, 10 bits of state (reallm-4bit)": {
        **ROTATED,
        "quantizer": {"kind": "trellis", "bits": 4},
    },
    "vq (2, 4), scales of rows": VECTORS,
    "the same, int8 factors, gains (reallm-2bit-tunable)": {
        **VECTORS,
        "residual": {"kind": "low_rank", "rank": "5/128", "dtype": "int8"},
        "dora": True,
    },
    "uniform 4, blocks of 64, zero points (rtn-4bit)": {
        "quantizer": {"kind": "uniform", "bits": 4},
        "scales": {"kind": "minmax", "dtype": "float16"},
    },
    "normal_float 4, two levels of scales (nf4)": {
        "quantizer": {"kind": "normal_float", "bits": 4},
        "scales": {"kind": "absmax", "bits": 8},
    },
    "uniform 8, scales of rows (embeddings, heads)": {
        "quantizer": {"kind": "uniform", "bits": 8},
        "scales": {"kind": "absmax", "per": "row"},
    },
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_matrix(words: dict[str, Any], shape: tuple[int, int]) -> PackedMatrix:
    """A packed matrix of a plan with random sections."""
    layout = layout_of(MatrixPlan.model_validate(words), shape, "bf16")
    return random_sections.random_matrix(PackedForm(layout=layout), int(torch.randint(1 << 31, ())))


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """Calls the next one each time."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def bitsandbytes_nf4(count: int, size: int, x: Tensor) -> Callable[[], object] | None:
    """bitsandbytes' product with NF4 weights, where it is installed."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return None
    layers = []
    for _ in range(count):
        layer = bnb.nn.Linear4bit(size, size, bias=False, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(
            torch.randn(size, size), requires_grad=False, quant_type="nf4", module=layer
        )
        layers.append(layer.to("cpu"))
    return in_turn([partial(layer, x) for layer in layers])


def measure_matrices(given: argparse.Namespace) -> None:
    size, cpu = given.size, torch.device("cpu")
    x = torch.randn(given.tokens, size).to(torch.bfloat16)
    count = max(2, -(-given.cold * 10**6 // (2 * size * size)))
    weights = [torch.randn(size, size).to(torch.bfloat16) for _ in range(count)]
    dense = in_turn([partial(torch.nn.functional.linear, x, weight) for weight in weights])
    theirs = bitsandbytes_nf4(2, size, x) if given.tokens == 1 else None
    print("| matrix | ms | / bfloat16 | error |")
    print("|---|---|---|---|")
    for name, words in CASES.items():
        first = random_matrix(words, (size, size))
        count = min(given.most, max(2, -(-given.cold * 10**6 // first.nbytes)))
        matrices = [first, *(random_matrix(words, (size, size)) for _ in range(count - 1))]
        products = [product_for(one, cpu, torch.bfloat16) for one in matrices]
        calls: dict[str, Callable[[], object]] = {
            "ours": in_turn([partial(one.linear, x) for one in products]),
            "dense": dense,
        }
        if theirs is not None and name.endswith("(nf4)"):
            calls["theirs"] = theirs
        with torch.no_grad():
            timer = interleaved(calls, given.rounds, given.clock)
            exact = product_for(first, cpu, torch.float32).linear(x.float())
        weight = product_for(first, cpu, torch.float64).rows(range(size))
        wanted = x.double() @ weight.t()
        error = float((exact - wanted).norm() / wanted.norm())
        ratio = timer.ratio("ours", "dense")
        print(f"| {name} | {1000 * timer.median('ours'):.2f} | {ratio:.2f} | {error:.1e} |")
        if "theirs" in calls:
            print(f"| / bitsandbytes' NF4 | | {timer.ratio('ours', 'theirs'):.2f} | |", flush=True)
    print(f"| torch, bfloat16 | {1000 * timer.median('dense'):.2f} | 1 | |")


def measure_model(given: argparse.Namespace) -> None:
    """A token, and a prompt, of a Llama of 8 layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from reallm_compiler.runtime.packed import PackedLinear

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    models: dict[str, Any] = {"dense": LlamaForCausalLM(config).eval()}
    for name in list(CASES)[:2]:
        model = LlamaForCausalLM(config).eval()
        for path, module in list(model.named_modules()):
            if path.endswith(LINEARS):
                packed = random_matrix(CASES[name], (module.out_features, module.in_features))
                model.set_submodule(path, PackedLinear.of(packed, dtype=torch.bfloat16))
        models[name] = model
    prompt = torch.randint(0, 4096, (1, given.prompt))

    def token(model: Any, cache: Any) -> object:
        found = model(prompt[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return found

    with torch.inference_mode():
        caches = {
            name: model(prompt[:, :8], use_cache=True).past_key_values
            for name, model in models.items()
        }
        calls = {
            "a token": {
                name: partial(token, model, caches[name]) for name, model in models.items()
            },
            f"a prompt of {given.prompt}": {
                name: partial(model, prompt) for name, model in models.items()
            },
        }
        print("| | " + " | ".join(models) + " |")
        print("|---" * (len(models) + 1) + "|")
        for what, each in calls.items():
            timer = interleaved(each, given.rounds, given.clock)
            cells = [
                f"{1000 * timer.median(name):.0f} ms, {timer.ratio(name, 'dense'):.2f}"
                for name in models
            ]
            print(f"| {what} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--cold", type=int, default=136, help="megabytes of matrices in turn")
    parser.add_argument("--most", type=int, default=64, help="matrices in turn, at most")
    parser.add_argument("--model", action="store_true", help="a whole model instead of matrices")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the model's prompt")
    add_options(parser, rounds=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    asked = os.environ.get(jit.VARIABLE)
    targets = " and ".join(jit.targets()) + (" as asked" if asked else "")
    print(f"Kernels for {targets}; {conditions(given)}\n")
    (measure_model if given.model else measure_matrices)(given)


if __name__ == "__main__":
    main()
