"""Forms of packed matrices that the Triton kernels know, each with a small matrix."""

from __future__ import annotations

from typing import Any

HADAMARD = [{"kind": "hadamard", "block": 16}]
TENSOR = {"kind": "rms", "per": "tensor"}
BYTES = {"kind": "absmax", "per": "block", "block": 64, "bits": 8, "superblock": 3}

Case = tuple[dict[str, Any], tuple[int, int]]


def trellis(bits: str, state_bits: int, **more: Any) -> dict[str, Any]:
    """A trellis quantizer that is quickly searched."""
    return {
        "kind": "trellis",
        "bits": bits,
        "state_bits": state_bits,
        "paths": 2,
        "iterations": 1,
        **more,
    }


CASES: dict[str, Case] = {
    "vectors of 4, orders of columns, scales in bytes, factors and gains": (
        {
            "residual": {"kind": "low_rank", "rank": 2, "dtype": "float16"},
            "permutation": {"kind": "nearest", "rows": 16},
            "scales": BYTES,
            "quantizer": {"kind": "vq", "bits": 1, "dim": 4},
            "dora": True,
        },
        (38, 128),
    ),
    "vectors of 2, factors of bytes": (
        {
            "residual": {"kind": "low_rank", "rank": 3, "dtype": "int8"},
            "scales": {"kind": "rms", "per": "row", "dtype": "float16"},
            "quantizer": {"kind": "vq", "bits": 3, "dim": 2},
        },
        (25, 48),
    ),
    "trellis, longer than a block": (
        {"transform": HADAMARD, "scales": TENSOR, "quantizer": trellis("2", 8)},
        (16, 1040),
    ),
    "trellis of two widths": (
        {"transform": HADAMARD, "scales": TENSOR, "quantizer": trellis("35/16", 10)},
        (17, 96),
    ),
    "wide codes of a computed trellis": (
        {
            "transform": HADAMARD,
            "scales": {"kind": "rms", "per": "row", "bits": 4, "superblock": 16},
            "quantizer": trellis("71/16", 12, table="computed"),
        },
        (16, 96),
    ),
    "4 bits with zero points": (
        {
            "scales": {"kind": "minmax", "per": "block", "block": 32, "dtype": "float16"},
            "quantizer": {"kind": "uniform", "bits": 4},
        },
        (20, 96),
    ),
    "3 bits with zero points of rows": (
        {
            "scales": {"kind": "minmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 3},
        },
        (20, 80),
    ),
    "integer zero points": (
        {
            "scales": {"kind": "affine", "per": "block", "block": 16, "code_bits": 5},
            "quantizer": {"kind": "uniform", "bits": 5},
        },
        (20, 48),
    ),
    "bytes": (
        {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 8},
        },
        (20, 48),
    ),
    "quantiles": (
        {"scales": BYTES, "quantizer": {"kind": "normal_float", "bits": 4}},
        (20, 64),
    ),
    "two transforms": (
        {
            "transform": [{"kind": "normalize", "by": "rms", "per": "column"}, *HADAMARD],
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 6},
        },
        (20, 48),
    ),
    "factors of rows on the inner side of a rotation": (
        {
            "transform": [*HADAMARD, {"kind": "normalize", "by": "rms", "per": "row"}],
            "scales": TENSOR,
            "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
        },
        (32, 48),
    ),
    "scales of columns": (
        {
            "transform": [{"kind": "normalize", "per": "row"}],
            "scales": {"kind": "absmax", "per": "column"},
            "quantizer": {"kind": "uniform", "bits": 2},
        },
        (20, 48),
    ),
}
