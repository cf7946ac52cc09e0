"""The stages of a tuning run, block by block and end to end, from where an earlier run stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from reallm_compiler.finetune.blockwise import BlockWise, plain_of
from reallm_compiler.finetune.end_to_end import EndToEnd, checkpointed, steps_of
from reallm_compiler.finetune.events import BlockDone, Started
from reallm_compiler.finetune.memory import MemoryEstimate
from reallm_compiler.finetune.progress import tensors_read
from reallm_compiler.finetune.state import SavedRun
from reallm_compiler.finetune.tuning import Tuning


def started(tuning: Tuning, memory: MemoryEstimate, saved: SavedRun | None) -> Started:
    """What is known before the first step."""
    options, count = tuning.options, min(len(tuning.train), tuning.options.block.sequences)
    batch = min(options.block.batch * options.block.accumulation, count)
    each = options.block.epochs * (count // batch)
    block_steps = each if "block" in options.stages else 0
    end_steps = steps_of(options.e2e, len(tuning.train)) if "e2e" in options.stages else 0
    return Started(
        memory=memory,
        matrices=len(tuning.tunable.layers),
        parameters=sum(value.numel() for _, value in tuning.tunable.parameters()),
        sequences=len(tuning.train),
        held_out=len(tuning.held_out),
        tokens=tuning.train.predicted,
        blocks=len(tuning.blocks),
        steps=len(tuning.blocks) * block_steps + end_steps,
        block_steps=block_steps,
        resumed=None if saved is None else _reached(saved.position),
    )


def _reached(position: Mapping[str, Any]) -> str:
    """How far an interrupted run was, in words."""
    if position["stage"] == "e2e":
        return f"end to end, step {position['step']}"
    return f"block {position.get('block', len(position['blocks']))}"


def run_stages(tuning: Tuning, saved: SavedRun | None) -> tuple[list[BlockDone], EndToEnd | None]:
    """Both stages, or one.

    Args:
        tuning: the run.
        saved: what an interrupted run has left.

    Returns:
        What became of each block, and the second stage if there was one.
    """
    position, tensors = (saved.position, saved.tensors) if saved is not None else ({}, {})
    with torch.no_grad():
        for name, parameter in tuning.tunable.parameters():
            if f"tuned/{name}" in tensors:
                parameter.copy_(tensors[f"tuned/{name}"])
    in_end = position.get("stage") == "e2e"
    blocks = [BlockDone(**entry) for entry in position.get("blocks", [])]
    if "block" in tuning.options.stages and not in_end:
        blocks = BlockWise(tuning).run(position, tensors)
    if "e2e" not in tuning.options.stages:
        return blocks, None
    teacher = None
    if tuning.options.e2e.loss == "distill":
        progress = tensors_read("original", tuning.emit)
        teacher = tuning.original.teacher(tuning.device, tuning.dtype, progress)
    for _, parameter in tuning.tunable.parameters():
        parameter.requires_grad_(True)
    tuning.shards.shard(teacher)
    end = EndToEnd(tuning, teacher)
    with checkpointed(tuning.blocks, tuning.options.checkpointing):
        end.run(position if in_end else {}, tensors, [plain_of(entry) for entry in blocks])
    return blocks, end
