"""What decoding an archive costs, known from its plan alone, and the bounds on it.

A few kilobytes can ask for hours of convolutions, or for a matrix that fills the memory: a trained
decoder makes large patches of single numbers. So what an archive may ask for is bounded, time by
a constant and memory by its own length, unless whoever opens it allows more.
"""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.errors import FormatError
from reallm_compiler.planning.model import Plan
from reallm_formats import section_bytes

MACS = 1 << 46
"""Multiply-accumulates of trained decoders that are free: an hour or so of one core."""

MEMORY = 1 << 30
MEMORY_PER_BYTE = 1 << 10
"""Bytes of decoded weights, or of a decoder at work, that are free, and how many more for each byte
of the file: a byte of the densest codes stands for 1024 bytes of float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCost:
    """What decoding every matrix of an archive once takes.

    Attributes:
        macs: multiply-accumulates of trained decoders.
        decoded_bytes: all decoded weights, in the checkpoint's own types.
        working_bytes: memory of the trained decoder that needs most, at work on one matrix.
    """

    macs: int
    decoded_bytes: int
    working_bytes: int


def decode_cost(plan: Plan) -> DecodeCost:
    """The cost of decoding all matrices of a plan."""
    macs = decoded = working = 0
    for matrix in plan.matrices:
        cost = matrix.layout.cost
        macs += cost.decode_macs
        decoded += section_bytes(matrix.dtype, matrix.shape)
        working = max(working, cost.decode_bytes)
    return DecodeCost(macs=macs, decoded_bytes=decoded, working_bytes=working)


def check_cost(plan: Plan) -> None:
    """Refuse a plan whose decoding goes beyond the bounds (P6).

    Raises:
        FormatError: what it costs, and what is allowed for a file of this length.
    """
    cost, length = decode_cost(plan), plan.layout.file_bytes
    memory = MEMORY + MEMORY_PER_BYTE * length
    asked = (
        (cost.macs, MACS, "multiply-accumulates"),
        (cost.decoded_bytes, memory, "bytes of weights"),
        (cost.working_bytes, memory, "bytes of memory for a trained decoder"),
    )
    for amount, bound, what in asked:
        if amount > bound:
            raise FormatError(
                "P6",
                f"decoding takes {amount:,} {what}; {bound:,} are allowed for a file of "
                f"{length:,} bytes",
                location="manifest: document.matrices",
                hint="if you trust this file, allow it with `--allow-cost` "
                "(`allow_cost=True` in Python)",
            )
