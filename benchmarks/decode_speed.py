"""Decoding a packed matrix to bfloat16: ours, bitsandbytes' NF4, and a plain copy of the result.

    pip install '.[fast,comparisons]'
    python benchmarks/decode_speed.py --size 4096

For each recipe a random matrix is coded, with and without its low-rank residual and magnitudes, and
decoded again and again. Each measurement alternates with a copy of the result (`clone`) and, for
NF4, with bitsandbytes' dequantization, so that a busy machine slows all of them; the medians of the
ratios are printed. `--clock cpu` (the default) counts seconds of the processor, which other work on
the machine disturbs less. Each result of 16 MB or more is fresh memory of the system,
as when a model is loaded, not memory that happens to lie free in the process. `--plain` leaves the
compiled kernel out, as if the extra `fast` were not installed.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import Timer, add_options, conditions, interleaved
from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics import kernel
from reallm_compiler.stages import MatrixPlan

BLOCK = {"kind": "absmax", "bits": 8}
ROW = {"kind": "rms", "per": "row", "dtype": "float16"}
CASES: dict[str, dict[str, Any]] = {
    "nf4, one float32 scale per 64": {
        "scales": {"kind": "absmax"},
        "quantizer": {"kind": "normal_float", "bits": 4},
    },
    "nf4, two levels of scales": {
        "scales": BLOCK,
        "quantizer": {"kind": "normal_float", "bits": 4},
    },
    "uniform 4": {"scales": {"kind": "minmax"}, "quantizer": {"kind": "uniform", "bits": 4}},
    "vq (2, 4), row scales": {"scales": ROW, "quantizer": {"kind": "vq", "bits": 2, "dim": 4}},
    "vq (2, 4), two levels of scales": {
        "scales": BLOCK,
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
    },
    "vq (3, 2), two levels of scales": {
        "scales": BLOCK,
        "quantizer": {"kind": "vq", "bits": 3, "dim": 2},
    },
}
RESIDUAL = {"residual": {"kind": "low_rank", "rank": "1/64"}, "dora": True}


def fresh_memory() -> Callable[[], object]:
    """Sets glibc, where it is there, to ask the system for large results; what gives back the rest.

    Call what is returned before each measurement: a result that fits into memory which lies free
    in the process would get that, and not need to touch new pages.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return lambda: None
    mmap_threshold = -3
    library.mallopt(mmap_threshold, 16 << 20)
    return lambda: library.malloc_trim(0)


def bitsandbytes_nf4(weight: torch.Tensor) -> Callable[[], object] | None:
    """bitsandbytes' dequantization of the same matrix to bfloat16, where it is installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        return None
    packed, state = functional.quantize_4bit(
        weight.to(torch.bfloat16), blocksize=64, quant_type="nf4"
    )
    return lambda: functional.dequantize_4bit(packed, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    add_options(parser, rounds=15)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    give_back = fresh_memory()
    if given.plain:
        kernel.LEAST = 1 << 62
    else:
        timer = Timer(given.clock)
        found = timer.run("kernel", lambda: kernel.compiled(4)) is not None
        took = 1000 * timer.median("kernel")
        state = f"loaded and compiled in {took:.0f} ms" if found else "missing"
        print(f"The kernel: {state}.\n")
    torch.manual_seed(0)
    weight = torch.randn(given.size, given.size)
    result = weight.to(torch.bfloat16)
    theirs = bitsandbytes_nf4(weight)
    print(f"{given.size} x {given.size}, {conditions(given)}\n")
    print("| recipe | ms | x copy | x bitsandbytes | with residual and DoRA, ms | x copy |")
    print("|---|---|---|---|---|---|")
    for name, words in CASES.items():
        cells = []
        for extra in ({}, RESIDUAL):
            plan = MatrixPlan.model_validate({**words, **extra})
            encoded = encode_matrix(plan, weight, seed=0, source_dtype="bf16")

            def decode(plan: MatrixPlan = plan, sections: Any = encoded.sections) -> object:
                shape = (given.size, given.size)
                return decode_matrix(plan, shape, "bf16", sections, dtype=torch.bfloat16)

            calls: dict[str, Callable[[], object]] = {"ours": decode, "copy": result.clone}
            if theirs is not None and not extra and name.startswith("nf4"):
                calls["theirs"] = theirs
            timer = interleaved(calls, given.rounds, given.clock, give_back)
            cells.append(f"{1000 * timer.median('ours'):.1f}")
            cells.append(f"{timer.ratio('ours', 'copy'):.2f}")
            if not extra:
                cells.append(f"{timer.ratio('ours', 'theirs'):.2f}" if "theirs" in calls else "")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
