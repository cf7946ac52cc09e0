"""What a tuning run works with, in both of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from reallm_compiler.finetune.events import Event
from reallm_compiler.finetune.options import FinetuneOptions
from reallm_compiler.finetune.original import Original
from reallm_compiler.finetune.processes import Processes
from reallm_compiler.finetune.sharding import Shards
from reallm_compiler.finetune.state import State
from reallm_compiler.models.blocks import Block
from reallm_compiler.models.sequences import Sequences
from reallm_compiler.runtime.tunable import TunableModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Types of the computation by their names in settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """A run, ready to begin.

    Attributes:
        tunable: the model.
        blocks: its blocks; empty where the run does not go through them.
        original: where targets come from.
        train: sequences to tune on.
        held_out: sequences held out.
        options: settings.
        state: where to keep how far the run is.
        processes: that share the batches.
        shards: the frozen weights, sharded among processes or not.
        emit: is called with events.
    """

    tunable: TunableModel
    blocks: list[Block]
    original: Original
    train: Sequences
    held_out: Sequences
    options: FinetuneOptions
    state: State
    processes: Processes
    shards: Shards
    emit: Callable[[Event], None]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.tunable.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation."""
        return DTYPES[self.options.precision]
