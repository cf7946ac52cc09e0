"""Where each shipped recipe runs from its codes, and the time of a token: docs/running.md's table.

    python -m benchmarks.running
    python -m benchmarks.running --where demo/model     # which matrices of a model have kernels

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

import reallm_compiler as reallm
from benchmarks.random_sections import random_matrix
from reallm_compiler.kernels import triton_product
from reallm_compiler.kernels.choose import Product, product_for
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.recipe.shipped import list_shipped

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


def by_kernel(packed: PackedMatrix, device: str) -> bool:
    """Whether a device has a kernel for a matrix; for `cuda`, whether one would be made there."""
    cpu = torch.device("cpu")
    if device == "cpu":
        return not isinstance(product_for(packed, cpu, torch.bfloat16), PlainProduct)
    with mock.patch.object(triton_product, "installed", return_value=True):
        return triton_product.triton_product(packed, cpu, torch.bfloat16) is not None


def coded_matrices(recipe: str, model: Path) -> dict[str, PackedMatrix]:
    """The matrices of a model that a recipe codes, one for each form and shape, of random numbers.

    Args:
        recipe: a name or a file.
        model: a folder with its `config.json`, or that file.
    """
    plan = reallm.plan(recipe, model=model)
    forms = {name: PackedForm(layout=matrix.layout) for name, matrix in plan.by_name.items()}
    matrices = {form.text: random_matrix(form) for form in forms.values()}
    return {name: matrices[form.text] for name, form in forms.items()}


def place(found: list[bool]) -> str:
    """A cell of the table: where matrices run."""
    if len(set(found)) == 1:
        return "kernel" if found[0] else "plain"
    return f"kernel {sum(found)} of {len(found)}"


def where(name: str, model: Path) -> str:
    """The line of a recipe: how many of a model's matrices have kernels."""
    matrices = coded_matrices(name, model).values()
    cells = [place([by_kernel(one, device) for one in matrices]) for device in ("cpu", "cuda")]
    return f"| `{name}` | {' | '.join(cells)} |"


def row(name: str, rounds: int) -> str:
    """The line of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA))
        plan = reallm.plan(name, model=Path(folder) / "config.json")
    matrix = plan.by_name["model.layers.0.self_attn.q_proj"]
    packed = random_matrix(PackedForm(layout=matrix.layout))
    bits = 8 * packed.nbytes / WIDTH**2
    on_cpu, on_cuda = (place([by_kernel(packed, device)]) for device in ("cpu", "cuda"))
    if packed.layout.cost.decode_macs > MOST_MACS:
        return f"| `{name}` | {bits:.2f} | {on_cpu} | | | {on_cuda} |"
    cpu, x = torch.device("cpu"), torch.randn(1, WIDTH, dtype=torch.bfloat16)
    products: list[Product] = [product_for(one, cpu, torch.bfloat16) for one in copies(packed)]
    weights = [torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(4)]
    calls: dict[str, list[Callable[[], object]]] = {
        "packed": [lambda one=one: one.linear(x) for one in products],  # type: ignore[misc]
        "bf16": [lambda w=w: torch.nn.functional.linear(x, w) for w in weights],  # type: ignore[misc]
    }
    found = in_turn(calls, rounds if on_cpu == "kernel" else 4)
    ratio = found["packed"] / found["bf16"]
    return (
        f"| `{name}` | {bits:.2f} | {on_cpu} | {1000 * found['packed']:.2f} | {ratio:.2f} | "
        f"{on_cuda} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all shipped ones if not given")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--where", type=Path, metavar="MODEL", help="no times: a model's matrices")
    given = parser.parse_args()
    torch.set_num_threads(1)
    heads = "CPU | CUDA |" if given.where else "bits | CPU | ms | x bf16 | CUDA |"
    print(f"| recipe | {heads}\n|---|{'---|' * heads.count('|')}")
    with torch.inference_mode():
        for name in given.recipes or list_shipped():
            line = where(name, given.where) if given.where else row(name, given.rounds)
            print(line, flush=True)


if __name__ == "__main__":
    main()
