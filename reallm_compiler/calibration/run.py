"""A calibration: model + text -> a file of statistics.

Steps: (1) settings, text, sequences; (2) a few tokens show what can be measured, so the file is
known to the byte; (3) memory and disk; (4) what an interrupted run has left; (5) the passes, each
journalled when it is durable; (6) manifest and header; (7) rename. A run that is killed at any
point goes on at step 5 and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.calibration.events import CalibrateReport, ChunkDone, Event, Started
from reallm_compiler.calibration.finish import finish, report_of
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.passes import PassRunner
from reallm_compiler.calibration.preflight import (
    check_disk,
    check_memory,
    choose_workers,
    memory_need,
)
from reallm_compiler.calibration.prepare import Prepared, prepare
from reallm_compiler.calibration.schedule import Schedule
from reallm_compiler.calibration.sequences import predicted
from reallm_compiler.calibration.spill import Spill, hidden_bytes
from reallm_compiler.checkpoint import Inventory, open_source
from reallm_compiler.errors import CalibrateError
from reallm_compiler.models.sequences import as_paths
from reallm_compiler.models.weights import Weights, shard_facts
from reallm_compiler.planning.statistics import (
    StatisticsForm,
)
from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.publish import refuse_inputs
from reallm_compiler.runs.backends import InProcess, results
from reallm_compiler.runs.counter import TaskCounter, record
from reallm_compiler.runs.devices import choose_device, device_title
from reallm_compiler.runs.identity import digest_of, machine_fields
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics, fixed_thread_pool
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.resume import finished_tasks, start
from reallm_compiler.runs.sink import FileSink
from reallm_compiler.runs.sources import check_digests, checked_sources
from reallm_compiler.runs.stop import StopRequest, catch_signals
from reallm_compiler.runs.tasks import TaskResult
from reallm_compiler.runs.training import StateFiles
from reallm_formats import encode_manifest

THREADS = 1
"""Threads of torch in each worker: fixed, because sums depend on it."""

DEVICE_TYPES = ("cpu", "cuda")


def calibrate(
    model: str | os.PathLike[str] | Inventory,
    *,
    output: str | os.PathLike[str],
    text: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    samples: int = 256,
    window: int | None = None,
    seed: int = 0,
    separator: str | None = None,
    own_text: bool = False,
    gradients: bool = True,
    diagonal: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> CalibrateReport:
    """Measure the second moments of a model's activations and gradients into a file.

    For each linear layer y = W x, with g the gradient at y of the negative log likelihood of labels
    that are drawn from the model's own prediction, means over predicted tokens are stored: of
    x x^T, plain and weighted by |g|^2; of g g^T, plain and weighted by |x|^2; of |x|^2 |g|^2; of
    |x|. `compile` takes the file as `statistics`.

    Args:
        model: a checkpoint's folder, a Hub id, or an inventory.
        output: the file of statistics.
        text: UTF-8 files.
        samples: sequences that are drawn from the text; all if it has fewer.
        window: tokens of a sequence; 2048, or what the model takes if that is less, when None.
        seed: of the drawn sequences and labels.
        separator: where the text is split into documents, each a sequence; None joins all texts and
            cuts them into windows.
        own_text: draw the text from the model itself; then no `text` is given.
        gradients: measure gradients too; without, only the inputs, in half the time.
        diagonal: of matrices [n, n] with n above this keep the diagonal alone; None keeps all.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: threads that run chunks of tokens at once; by cores and memory when None. The
            bytes do not depend on it.
        resume: `auto` goes on where an interrupted run stood, `required` refuses to start afresh,
            `never` starts over.
        force: overwrite an existing file when the new one is finished.
        progress: see `reallm_compiler.progress`; counts chunks of tokens in each pass. True when
            None, or False where `on_event` is given.
        on_event: is called with what is known before the first pass, and with each step.

    Raises:
        CalibrateError: a setting has no meaning, the text is unfit, or memory or disk do not do.
        SourceError: the checkpoint cannot be read, or predicts no text.
        OutputError, CompileError, ResumeError: see `reallm_compiler.errors`; `Interrupted` after
            SIGINT or SIGTERM.
    """
    options = CalibrateOptions(
        samples=samples,
        window=window,
        seed=seed,
        separator=separator,
        own_text=own_text,
        form=StatisticsForm(gradients=gradients, diagonal=diagonal),
    )
    options.check()
    emit = _counted(on_event is None if progress is None else progress, on_event)
    with catch_signals() as stop:
        try:
            with stop.at_once():
                return _calibrate(
                    model,
                    as_paths(text),
                    Output(Path(output).absolute()),
                    options,
                    choose_device(device, CalibrateError, types=DEVICE_TYPES),
                    resume,
                    emit,
                    stop,
                    workers=workers,
                    force=force,
                )
        except KeyboardInterrupt:
            raise stop.interrupted() from None


def _calibrate(
    model: str | os.PathLike[str] | Inventory,
    paths: tuple[str | os.PathLike[str], ...],
    output: Output,
    options: CalibrateOptions,
    device: torch.device,
    resume: str,
    emit: Callable[[Event], None],
    stop: StopRequest,
    *,
    workers: int | None,
    force: bool,
) -> CalibrateReport:
    began = time.monotonic()
    inventory = model if isinstance(model, Inventory) else open_source(model)
    refuse_inputs(output.path, inventory.path or None, *paths)
    output.check(force=force or output.journal.exists())
    with output.open_journal() as journal, fixed_numerics(THREADS, device):
        stop.kept = bool(journal.records)
        ready = prepare(inventory, paths, options, device, output, emit)
        measurement = ready.probed.measurement
        shapes = [(chunk.ids.shape[0], chunk.ids.shape[1]) for chunk in ready.chunks]
        schedule = Schedule(measurement, hidden_bytes(shapes, ready.width))
        graph = schedule.tasks()
        identity = {
            "plan": hashlib.sha256(encode_manifest(ready.layout.manifest)).hexdigest(),
            "text": ready.text.hex(),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in inventory.files},
            "source": shard_facts(inventory),
            **machine_fields(device),
        }
        states = StateFiles(output.partial, digest_of(identity))
        spill = Spill(states, shapes, ready.width)
        found = finished_tasks(journal, graph, identity, output, ready.layout, resume=resume)
        if found is not None:
            _check_weights(inventory, found)
            if output.is_finished(found):
                journal.remove()
                return report_of(output, ready, began, resumed=len(graph))
            if not all(spill.has(name) for name in schedule.needed(found)):
                found = {}  # hidden states are gone: what needs them is made again
        output.check(force=force)
        done = found or {}
        reserve = found is None
        disk = (ready.layout.file_bytes if reserve else 0) + schedule.disk_bytes()
        need = memory_need(ready.probed.original, measurement, ready.chunks, ready.width)
        count = choose_workers(need, workers, len(ready.chunks), device)
        free, disk_free = check_memory(need.of(count)), check_disk(output.path.parent, disk)
        with stop.in_order():
            if reserve:
                output.reserve(ready.layout)
                states.remove_all()
                if ready.own_text is not None:
                    ready.own_text.keep()
                start(journal, identity)
            stop.kept = True
            resumed = len(done)
            emit(
                Started(
                    matrices=len(measurement.rows),
                    left_out=ready.probed.left_out,
                    sequences=sum(len(chunk.numbers) for chunk in ready.chunks),
                    tokens=predicted(ready.chunks),
                    blocks=len(measurement.parts),
                    file_bytes=ready.layout.file_bytes,
                    disk_bytes=disk,
                    disk_free_bytes=disk_free,
                    memory_bytes=need.of(count),
                    workers=count,
                    memory_free_bytes=free,
                    device=device_title(device),
                    tasks=len(graph),
                    tasks_done=resumed,
                    notes=(
                        *inventory.notes,
                        *((ready.probed.note,) if ready.probed.note is not None else ()),
                    ),
                )
            )
            job = _Job(ready, schedule, output.partial, options.seed, spill, count, device)
            running = results(InProcess(), job, graph, done, stop, emit)
            with closing(running):
                same = checked_sources(running, done, inventory.path)
                record(same, done, journal, states, TaskCounter(graph, done, emit))
            finish(ready, output, done, identity)
            output.publish()
            states.remove_all()
            journal.remove()
    return report_of(output, ready, began, resumed=resumed)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the passes of one calibration have in common (`runs.job.Job`)."""

    ready: Prepared
    schedule: Schedule
    partial: Path
    seed: int
    spill: Spill
    workers: int
    device: torch.device

    @contextmanager
    def open(self, context: Context) -> Iterator[PassRunner]:
        """A runner in this process."""
        with (
            closing(FileSink(self.partial, self.ready.layout)) as sink,
            fixed_thread_pool(self.workers, THREADS) as pool,
        ):
            yield PassRunner(
                self.ready.probed.original,
                self.ready.probed.calls,
                self.ready.probed.measurement,
                self.schedule,
                self.ready.chunks,
                self.seed,
                self.spill,
                sink,
                context,
                pool,
                self.workers,
                self.device,
            )


def _check_weights(inventory: Inventory, done: Mapping[str, TaskResult]) -> None:
    """The weights that finished passes read are in the checkpoint as they were then.

    Raises:
        ResumeError: some have changed; names them.
        SourceError: a shard cannot be read.
    """
    weights = Weights(inventory)
    wanted = {name: hexes for result in done.values() for name, hexes in result.source.items()}
    for name in wanted:
        if name in weights.by_name:  # scales are read with their weights
            weights.read(name)
    check_digests(inventory.path, wanted, weights.digests, "calibration")


def _counted(
    progress: Progress, on_event: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    """What is called with every event, and reports the chunks among them as progress."""
    count = progress_callback(progress, "calibrate", "steps")

    def hear(event: Event) -> None:
        if isinstance(event, ChunkDone):
            count(event.steps_done, event.steps)
        if on_event is not None:
            on_event(event)

    return hear
