"""What a calibration takes of memory and disk, known before its first pass.

Memory is an estimate on the safe side: weights of one block and of what stays, the sums of the
matrices of one block in float64, and what the backward pass of a chunk keeps of a block and of the
logits. The disk holds the file and the hidden states at the borders of all blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.calibration.moments import sums_bytes
from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.schedule import Measurement
from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.errors import CalibrateError
from reallm_compiler.runs.machines import Machines
from reallm_compiler.system import cores, free_memory

LIBRARIES_BYTES = 450 * 2**20
"""An interpreter with torch and transformers."""

RESERVE_BYTES = 100 * 2**20
"""Other memory."""

KEPT = 3
"""Tensors of the width of an input or output that a backward pass keeps for each of a block's
matrices, at most."""

LOGITS = 4
"""Tensors of the size of a chunk's logits."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory of a calibration.

    Attributes:
        shared: bytes whatever the number of workers, with the interpreter.
        each: bytes of each worker.
    """

    shared: int
    each: int

    def of(self, workers: int) -> int:
        """The estimated peak of so many workers."""
        return self.shared + workers * self.each


def memory_need(
    original: Original,
    measurement: Measurement,
    chunks: Sequence[Chunk],
    width: int,
    *,
    sharded: bool = False,
) -> MemoryNeed:
    """The estimated peak of memory; sums of shards are there twice while they are added up."""
    tokens = max(chunk.ids.numel() for chunk in chunks)
    longest = max(chunk.ids.shape[1] for chunk in chunks)
    around = [measurement.stem, measurement.tail]
    parts = [*measurement.parts, *around] if measurement.parts else [measurement.rows]
    sums = max(sum(map(sums_bytes, part)) for part in parts) * (2 if sharded else 1)
    widths = max(sum(sum(row.shape) for row in part) for part in parts)
    config = original.model.config.get_text_config()
    vocabulary = int(getattr(config, "vocab_size", 0) or 0)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    activations = max(KEPT * widths, LOGITS * vocabulary) + 2 * width + 2 * longest * heads
    weights = original.kept_bytes() + 2 * original.block_bytes()
    return MemoryNeed(LIBRARIES_BYTES + RESERVE_BYTES + weights + sums, 4 * tokens * activations)


def choose_workers(need: MemoryNeed, asked: int | None, chunks: int, device: torch.device) -> int:
    """Threads that run chunks at once: what is asked for, or one for each core if memory allows."""
    if asked is None:
        free = free_memory()
        asked = cores() if device.type == "cpu" else 1
        if free is not None:
            asked = min(asked, (free + LIBRARIES_BYTES - need.shared) // max(1, need.each))
    return max(1, min(asked, chunks))


def workers_on(
    machines: Machines, need: MemoryNeed, asked: int | None, chunks: int, shards: int
) -> tuple[int, int, int | None]:
    """What runs at once, the memory that it takes, and what is free, None if that is unknown.

    On this machine threads that run chunks, on a cluster tasks that each run a shard.

    Raises:
        CalibrateError: memory is too small.
    """
    slots = machines.slots(need.of(1), need.of(1))
    if slots is None:
        count = choose_workers(need, asked, chunks, machines.device)
        return count, need.of(count), check_memory(need.of(count))
    if not slots.count:
        raise CalibrateError(
            f"no node of the cluster has enough memory: about {need.of(1) >> 20:,} MiB are needed, "
            f"and the largest node offers {slots.largest_bytes >> 20:,} MiB",
            hint="keep diagonals of large matrices with `--diagonal N`, leave gradients out with "
            "`--no-gradients`, or give a smaller `--window`",
        )
    count = max(1, min(asked or slots.count, slots.count, shards))
    return count, LIBRARIES_BYTES + count * need.of(1), slots.memory_bytes


def check_memory(needed: int) -> int | None:
    """Memory that is free, None if that is unknown.

    Raises:
        CalibrateError: it is less than is needed beside the interpreter.
    """
    free = free_memory()
    if free is not None and needed - LIBRARIES_BYTES > free:
        raise CalibrateError(
            f"memory is too small: about {needed >> 20:,} MiB are needed and {free >> 20:,} MiB "
            "are free",
            hint="keep diagonals of large matrices with `--diagonal N`, leave gradients out with "
            "`--no-gradients`, or give fewer `--workers` or a smaller `--window`",
        )
    return free


def check_disk(folder: Path, needed: int) -> int:
    """Free bytes in a folder.

    Raises:
        CalibrateError: fewer than `needed`.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CalibrateError(
            f"the disk is too small: {needed:,} bytes are needed for the file and for hidden "
            f"states, and {free:,} are free",
            location=str(folder),
            hint="choose another output folder, or fewer `--samples`",
        )
    return free
