"""Where each shipped recipe runs from its codes, and the time of a token: docs/running.md's table.

    python benchmarks/running.py

For each recipe the plan of a linear layer of 4096 x 4096, with sections of random numbers that keep
its value rules: a product's time does not hang on what they are. The product of one token in
bfloat16 is timed beside torch's own linear in bfloat16, call by call, one thread, by the thread's
processor clock, over as many copies as make both come from memory and not from a cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import reallm_compiler as reallm
from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.codecs.sections import stored_dtype, stored_shape
from reallm_compiler.errors import FormatError
from reallm_compiler.kernels import triton_product
from reallm_compiler.kernels.choose import Product, product_for
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.recipe.shipped import list_shipped
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.values import Ones, Order

WIDTH = 4096
COLD = 128 << 20
"""Bytes of copies that are gone through in turn."""

MOST_MACS = 10**11
"""A trained decoder that takes more is not waited for."""

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 11008,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "dtype": "bfloat16",
}


def random_section(spec: SectionSpec, generator: torch.Generator) -> Tensor:
    """A section's tensor that keeps its value rule, for the rules known here."""
    if isinstance(spec.values, Ones):
        mask = torch.zeros(spec.shape, dtype=torch.uint8)
        mask.view(-1)[torch.randperm(mask.numel(), generator=generator)[: spec.values.count]] = 1
        return pack(mask, 1)
    if isinstance(spec.values, Order):
        rows, columns = spec.shape
        return pack(torch.arange(columns).expand(rows, columns), int(spec.dtype[1:]))
    dtype, shape = stored_dtype(spec), stored_shape(spec)
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) * 0.01 + 0.01).to(dtype)
    return torch.randint(0, 127, shape, generator=generator, dtype=dtype)


def random_matrix(form: PackedForm) -> PackedMatrix:
    """A packed matrix of random numbers."""
    generator = torch.Generator().manual_seed(0)
    return form.with_sections([random_section(spec, generator) for spec in form.specs])


def copies(packed: PackedMatrix) -> list[PackedMatrix]:
    """The matrix and enough copies that none is in a cache when its turn comes."""
    count = max(2, COLD // packed.nbytes)
    return [packed] + [
        packed.form.with_sections([one.clone() for one in packed.sections.values()])
        for _ in range(count - 1)
    ]


def in_turn(calls: dict[str, list[Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Median seconds of each name's calls, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name, those in calls.items():
            began = time.thread_time()
            those[index % len(those)]()
            seconds[name].append(time.thread_time() - began)
    return {name: statistics.median(found[2:]) for name, found in seconds.items()}


def row(name: str, rounds: int) -> str:
    """The line of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA))
        plan = reallm.plan(name, model=Path(folder) / "config.json")
    matrix = plan.by_name["model.layers.0.self_attn.q_proj"]
    packed = random_matrix(PackedForm(layout=matrix.layout))
    many = copies(packed)
    cpu, x = torch.device("cpu"), torch.randn(1, WIDTH, dtype=torch.bfloat16)
    products: list[Product] = [product_for(one, cpu, torch.bfloat16) for one in many]
    weights = [torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(4)]
    compiled = not isinstance(products[0], PlainProduct)
    if packed.layout.cost.decode_macs > MOST_MACS:
        return f"| `{name}` | {8 * packed.nbytes / WIDTH**2:.2f} | plain | | | plain |"
    slow = rounds if compiled else 4
    calls: dict[str, list[Callable[[], object]]] = {
        "packed": [lambda one=one: one.linear(x) for one in products],  # type: ignore[misc]
        "bf16": [lambda w=w: torch.nn.functional.linear(x, w) for w in weights],  # type: ignore[misc]
    }
    found = in_turn(calls, slow)
    bits = 8 * packed.nbytes / WIDTH**2
    with mock.patch.object(triton_product, "installed", return_value=True):
        on_cuda = triton_product.triton_product(packed, cpu, torch.bfloat16) is not None
    return (
        f"| `{name}` | {bits:.2f} | {'kernel' if compiled else 'plain'} | "
        f"{1000 * found['packed']:.2f} | {found['packed'] / found['bf16']:.2f} | "
        f"{'kernel' if on_cuda else 'plain'} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all shipped ones if not given")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | bits | CPU | ms | x bf16 | CUDA |\n|---|---|---|---|---|---|")
    for name in given.recipes or list_shipped():
        with torch.inference_mode():
            try:
                print(row(name, given.rounds), flush=True)
            except FormatError:  # random numbers break a rule: outliers of blocks of rows
                print(f"| `{name}` | | plain | | | plain |", flush=True)


if __name__ == "__main__":
    main()
