"""The work of a calibration in a process: the model is tried, then passes are made over shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reallm_compiler.calibration.passes import PassRunner
from reallm_compiler.calibration.probe import Probed, probe_model
from reallm_compiler.calibration.schedule import Measurement
from reallm_compiler.calibration.shards import Shard, ShardedSchedule
from reallm_compiler.checkpoint import Inventory
from reallm_compiler.planning.statistics import StatisticsForm
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics, fixed_thread_pool
from reallm_compiler.runs.sink import FileSink
from reallm_compiler.runs.training import StateFiles
from reallm_formats import Layout

THREADS = 1
"""Threads of torch in each worker: fixed, because sums depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateJob:
    """What the passes of one calibration have in common (`runs.job.Job`).

    Attributes:
        inventory: of the checkpoint.
        form: how much is measured.
        ids: int64 [2, t], tokens on which the model is tried.
        probed: the model that this process has tried; None to try it where the work is done.
        measurement: what is measured.
        schedule, shards: the passes, and over what.
        states: names the files of hidden states and sums.
        partial, layout: the reserved file.
        seed: of the labels.
        workers: threads that run chunks at once.
        device: where the work is done.
    """

    inventory: Inventory
    form: StatisticsForm
    ids: Tensor
    probed: Probed | None
    measurement: Measurement
    schedule: ShardedSchedule
    shards: Sequence[Shard]
    states: StateFiles
    partial: Path
    layout: Layout
    seed: int
    workers: int
    device: torch.device

    @contextmanager
    def open(self, context: Context) -> Iterator[PassRunner]:
        """A runner in this process."""
        with (
            fixed_numerics(THREADS, self.device),
            closing(FileSink(self.partial, self.layout)) as sink,
            fixed_thread_pool(self.workers, THREADS) as pool,
        ):
            probed = self.probed or probe_model(
                self.inventory, self.form, self.ids.to(self.device), self.device
            )
            yield PassRunner(
                original=probed.original,
                calls=probed.calls,
                measurement=self.measurement,
                schedule=self.schedule,
                shards=self.shards,
                states=self.states,
                seed=self.seed,
                sink=sink,
                context=context,
                pool=pool,
                workers=self.workers,
                device=self.device,
            )
