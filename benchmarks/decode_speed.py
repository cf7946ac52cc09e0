"""Decoding a packed matrix to bfloat16: ours, bitsandbytes' NF4, and a plain copy of the result.

    pip install '.[fast,comparisons]'
    python benchmarks/decode_speed.py --size 4096

For each recipe a random matrix is coded, with and without its low-rank residual and magnitudes, and
decoded again and again. Each measurement alternates with a copy of the result (`clone`) and, for
NF4, with bitsandbytes' dequantisation, so that a busy machine slows all of them; the medians of the
ratios are printed. One thread; `--clock cpu` (the default) counts seconds of the processor, which
other work on the machine disturbs less. Each result of 16 MB or more is fresh memory of the system,
as when a model is loaded, not memory that happens to lie free in the process. `--plain` leaves the
compiled kernel out, as if the extra `fast` were not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

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
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
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


def paired(
    acts: Mapping[str, Callable[[], object]],
    rounds: int,
    now: Callable[[], float],
    before: Callable[[], object],
) -> dict[str, list[float]]:
    """Seconds of each act, taken in turn, after one round that does not count.

    `before` is called before each and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in acts}
    for place in range(rounds + 1):
        for name, act in acts.items():
            before()
            began = now()
            act()
            if place:
                times[name].append(now() - began)
    return times


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios, pair by pair."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def bitsandbytes_nf4(weight: torch.Tensor) -> Callable[[], object] | None:
    """bitsandbytes' dequantisation of the same matrix to bfloat16, where it is installed."""
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    give_back = fresh_memory()
    now = CLOCKS[given.clock]
    if given.plain:
        kernel.LEAST = 1 << 62
    else:
        began = now()
        found = kernel.compiled(4) is not None
        state = f"loaded and compiled in {1000 * (now() - began):.0f} ms" if found else "missing"
        print(f"The kernel: {state}.\n")
    torch.manual_seed(0)
    weight = torch.randn(given.size, given.size)
    result = weight.to(torch.bfloat16)
    rival = bitsandbytes_nf4(weight)
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

            acts: dict[str, Callable[[], object]] = {"ours": decode, "copy": result.clone}
            if rival is not None and not extra and name.startswith("nf4"):
                acts["rival"] = rival
            times = paired(acts, given.rounds, now, give_back)
            cells.append(f"{1000 * statistics.median(times['ours']):.1f}")
            cells.append(f"{ratio(times['ours'], times['copy']):.2f}")
            if not extra:
                other = f"{ratio(times['ours'], times['rival']):.2f}" if "rival" in times else ""
                cells.append(other)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
