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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from reallm_compiler.calibration.events import (
    CalibrateReport,
    Event,
    Started,
)
from reallm_compiler.calibration.finish import finish, report_of
from reallm_compiler.calibration.job import THREADS, CalibrateJob
from reallm_compiler.calibration.options import CalibrateOptions, RunOptions
from reallm_compiler.calibration.preflight import check_disk, memory_need, workers_on
from reallm_compiler.calibration.prepare import prepare
from reallm_compiler.calibration.progress import counting_chunks, with_progress
from reallm_compiler.calibration.resume import check_weights
from reallm_compiler.calibration.sequences import predicted
from reallm_compiler.calibration.shards import ShardedSchedule, shards_of, sums_file
from reallm_compiler.checkpoint import Inventory, open_source
from reallm_compiler.checkpoint.identity import shard_facts
from reallm_compiler.errors import CalibrateError
from reallm_compiler.models.sequences import as_paths
from reallm_compiler.planning.statistics import StatisticsForm
from reallm_compiler.progress import Progress
from reallm_compiler.publish import refuse_inputs
from reallm_compiler.runs.backends import results
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.counter import TaskCounter, record
from reallm_compiler.runs.identity import digest_of
from reallm_compiler.runs.machines import Machines, ThisMachine, check_own_kind
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.open_machines import open_machines
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.resume import finished_tasks, start
from reallm_compiler.runs.sources import checked_sources
from reallm_compiler.runs.stop import StopRequest, catch_signals
from reallm_compiler.runs.tasks import TaskResult
from reallm_compiler.runs.training import StateFiles
from reallm_formats import encode_manifest

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
    shards: int = 1,
    cluster: ClusterOptions | None = None,
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
            bytes do not depend on it. On a cluster, tasks at once.
        shards: of the text, each of which a machine of a cluster can measure by itself; the sums
            of all are added up in order, so that the bytes depend on the number.
        cluster: a Ray cluster that measures; this machine when None.
        resume: `auto` goes on where an interrupted run stood, `required` refuses to start afresh,
            `never` starts over.
        force: overwrite an existing file when the new one is finished.
        progress: see `reallm_compiler.progress`; counts chunks of tokens in each pass. True when
            None, or False where `on_event` is given.
        on_event: is called with what is known before the first pass, and with each step.

    Raises:
        CalibrateError: a setting has no meaning, the text is unfit, or memory or disk is too small.
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
        shards=shards,
    )
    options.check()
    run = RunOptions(
        texts=as_paths(text),
        output=Output(Path(output).absolute()),
        workers=workers,
        resume=resume,
        force=force,
        emit=with_progress(on_event is None if progress is None else progress, on_event),
    )
    with catch_signals() as stop:
        try:
            with (
                stop.at_once(),
                open_machines(
                    device, CalibrateError, types=DEVICE_TYPES, cluster=cluster
                ) as machines,
            ):
                _check_cluster(cluster, machines, options)
                return _calibrate(model, options, run, machines, stop)
        except KeyboardInterrupt:
            raise stop.interrupted() from None


def _calibrate(
    model: str | os.PathLike[str] | Inventory,
    options: CalibrateOptions,
    run: RunOptions,
    machines: Machines,
    stop: StopRequest,
) -> CalibrateReport:
    began, output, emit = time.monotonic(), run.output, run.emit
    # What is known before the first pass depends on shapes alone, and is found out here.
    device = machines.device if isinstance(machines, ThisMachine) else torch.device("cpu")
    inventory = model if isinstance(model, Inventory) else open_source(model)
    refuse_inputs(output.path, inventory.path or None, *run.texts)
    output.check(force=run.force or output.journal.exists())
    with output.open_journal() as journal, fixed_numerics(THREADS, device):
        stop.kept = bool(journal.records)
        ready = prepare(inventory, run.texts, options, device, output, emit)
        measurement = ready.probed.measurement
        identity = {
            "plan": hashlib.sha256(encode_manifest(ready.layout.manifest)).hexdigest(),
            "text": ready.text.hex(),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in inventory.files},
            "source": shard_facts(inventory),
            **machines.fields,
        }
        states = StateFiles(output.partial, digest_of(identity))
        shards = shards_of(ready.chunks, options.shards, states, ready.width)
        schedule = ShardedSchedule(measurement, shards, ready.width)
        graph = schedule.tasks()
        found = finished_tasks(journal, graph, identity, output, ready.layout, resume=run.resume)
        if found is not None:
            check_weights(inventory, found, emit)
            if output.is_finished(found):
                journal.remove()
                return report_of(output, ready, began, resumed=len(graph))
            if not schedule.has_files(found, states):
                found = {}  # hidden states are gone: what needs them is made again
        output.check(force=run.force)
        done = found or {}
        reserve = found is None
        disk = (ready.layout.file_bytes if reserve else 0) + schedule.disk_bytes()
        need = memory_need(
            ready.probed.original,
            measurement,
            ready.chunks,
            ready.width,
            sharded=schedule.sharded,
        )
        count, memory, free = workers_on(
            machines, need, run.workers, len(ready.chunks), len(shards)
        )
        disk_free = check_disk(output.path.parent, disk)
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
                    memory_bytes=memory,
                    workers=count,
                    memory_free_bytes=free,
                    device=machines.title,
                    tasks=len(graph),
                    tasks_done=resumed,
                    notes=(
                        *inventory.notes,
                        *((ready.probed.note,) if ready.probed.note is not None else ()),
                    ),
                )
            )
            alone = isinstance(machines, ThisMachine)
            job = CalibrateJob(
                inventory=inventory,
                form=options.form,
                ids=ready.ids,
                probed=ready.probed if alone else None,
                measurement=measurement,
                schedule=schedule,
                shards=shards,
                states=states,
                partial=output.partial,
                layout=ready.layout,
                seed=options.seed,
                workers=count if alone else 1,
                device=machines.device,
            )
            backend = machines.backend(1 if alone else count, memory=lambda task: need.of(1))
            counting = counting_chunks(emit, schedule.chunks_in(done))
            running = results(backend, job, graph, done, stop, counting)
            with closing(running):
                same = _without_sums(
                    checked_sources(running, done, inventory.path), schedule, states
                )
                record(same, done, journal, states, TaskCounter(graph, done, emit))
            finish(ready, output, done, identity)
            output.publish()
            states.remove_all()
            journal.remove()
    return report_of(output, ready, began, resumed=resumed)


def _without_sums(
    found: Iterable[TaskResult], schedule: ShardedSchedule, states: StateFiles
) -> Iterator[TaskResult]:
    """The results; sums of shards are removed when what they add up to is in the journal."""
    for result in found:
        yield result
        for part in schedule.parts_of(result.task):
            states.remove(sums_file(part))


def _check_cluster(
    cluster: ClusterOptions | None, machines: Machines, options: CalibrateOptions
) -> None:
    """Refuse a cluster that cannot hand on hidden states, or whose text would be another.

    Raises:
        CalibrateError: why.
    """
    if cluster is None:
        return
    if not cluster.shared_storage and cluster.address != "local":
        raise CalibrateError(
            "on a cluster a calibration needs storage that all nodes share",
            note="hidden states and sums are handed from pass to pass beside the output",
            hint="write the output where all nodes see it, and say so with `--shared-storage`",
        )
    if options.own_text:
        check_own_kind(machines, "draws the text", CalibrateError)
