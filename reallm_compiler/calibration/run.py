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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.calibration.events import CalibrateReport, ChunkDone, Event, Started
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.own_text import OwnText
from reallm_compiler.calibration.passes import PassRunner
from reallm_compiler.calibration.preflight import (
    check_disk,
    check_memory,
    choose_workers,
    memory_need,
)
from reallm_compiler.calibration.probe import TOKENS, Probed, probe
from reallm_compiler.calibration.schedule import Schedule
from reallm_compiler.calibration.sequences import Chunk, chunks_of, predicted
from reallm_compiler.calibration.spill import Spill, hidden_bytes
from reallm_compiler.calibration.text import as_paths, draw_sequences
from reallm_compiler.checkpoint import Inventory, open_source
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError, SourceError
from reallm_compiler.models.blocks import hidden_states
from reallm_compiler.models.sequences import read_texts
from reallm_compiler.models.source import source_files
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import check_predicts_text, check_reads, usable_positions
from reallm_compiler.models.tokenizer import load_tokenizer
from reallm_compiler.models.weights import Weights, shard_facts
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.statistics import (
    StatisticsForm,
    measured_matrices,
    statistics_document,
    statistics_layout,
)
from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.publish import refuse_inputs
from reallm_compiler.runs.backends import InProcess, results
from reallm_compiler.runs.counter import TaskCounter, record
from reallm_compiler.runs.devices import choose_device, device_title
from reallm_compiler.runs.identity import digest_of, machine_fields
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.resume import finished_tasks, start
from reallm_compiler.runs.sink import FileSink
from reallm_compiler.runs.sources import check_digests, checked_sources
from reallm_compiler.runs.stop import StopRequest, catch_signals
from reallm_compiler.runs.tasks import TaskGraph, TaskResult
from reallm_compiler.runs.training import StateFiles
from reallm_formats import Layout, Writer, encode_manifest

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """Everything that is known before the first pass."""

    probed: Probed
    chunks: list[Chunk]
    layout: Layout
    settings: Mapping[str, Any]
    text: bytes
    own_text: OwnText | None
    width: int


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
        ready = _prepare(inventory, paths, options, device, output, emit)
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
                return _report(output, ready, graph, began, resumed=len(graph))
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
            _finish(ready, output, done, identity)
            output.publish()
            states.remove_all()
            journal.remove()
    return _report(output, ready, graph, began, resumed=resumed)


def _prepare(
    inventory: Inventory,
    paths: tuple[str | os.PathLike[str], ...],
    options: CalibrateOptions,
    device: torch.device,
    output: Output,
    emit: Callable[[Event], None],
) -> _Prepared:
    """The model, the sequences and the layout.

    Raises:
        CalibrateError, SourceError: as `calibrate` does.
    """
    files = source_files(inventory, inventory.path)
    check_predicts_text(files)
    tokenizer = load_tokenizer(files.small, files.label)
    if tokenizer is None:
        raise SourceError(
            "the model has no tokenizer, so no text can be read",
            location=files.label,
            hint="put its tokenizer.json beside config.json",
        )
    if options.own_text and paths:
        raise CalibrateError(
            "a text is given, and the model was to write one itself",
            hint="leave out `--text` or `--own-text`",
        )
    texts, digest = ([], b"") if options.own_text else read_texts(paths, CalibrateError)
    facts = measured_matrices(inventory)
    if not facts:
        raise SourceError("this model has no linear layer to measure", location=files.label)
    original = Original(inventory, facts, device)
    window = window_of(options.window, [usable_positions(original.model)], CalibrateError)
    own_text = None
    if options.own_text:
        own_text = _own_text(inventory, output, options, window, device)
        sequences = own_text.sequences(
            files, tokenizer, options.samples, window, options.seed, device, emit
        )
        digest = hashlib.sha256(torch.tensor(sequences).numpy().tobytes()).digest()
    else:
        sequences = draw_sequences(tokenizer, texts, window, options)
    with original.as_a_whole():
        largest = max(map(max, sequences))
        check_reads(original.model, sequences[0], largest, CalibrateError)
    chunks = chunks_of(sequences)
    count = min(TOKENS, window)
    rows = [(sequence * count)[:count] for sequence in (sequences[0], sequences[-1])]
    ids = torch.tensor(rows, device=device)
    probed = probe(original, facts, options.form, ids)
    if probed.calls is None and original.blocks:
        whole = Original(inventory, facts, device, whole=True)
        probed = replace(probe(whole, facts, options.form, ids), note=probed.note)
    width = 0
    if probed.calls is not None:
        first = probed.original.blocks[0].module
        width = hidden_states(probed.original.model, first, ids).shape[-1]
    settings = options.plain(sequences=len(sequences), window=window)
    document = statistics_document(
        probed.measurement.rows, tokens=predicted(chunks), settings=settings
    )
    return _Prepared(
        probed=probed,
        chunks=chunks,
        layout=statistics_layout(document),
        settings=settings,
        text=digest,
        own_text=own_text,
        width=width,
    )


def _own_text(
    inventory: Inventory,
    output: Output,
    options: CalibrateOptions,
    window: int,
    device: torch.device,
) -> OwnText:
    """The text that the model writes, with what an interrupted run has drawn of it."""
    identity = {
        "window": str(window),
        "seed": str(options.seed),
        "source": digest_of(shard_facts(inventory)),
        **machine_fields(device),
    }
    path = StateFiles(output.partial, digest_of(identity)).path("own text")
    return OwnText(path, identity)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the passes of one calibration have in common (`runs.job.Job`)."""

    ready: _Prepared
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
            ThreadPoolExecutor(self.workers) as pool,
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
        weights.read(name)
    check_digests(inventory.path, wanted, weights.digests, "calibration")


def _finish(
    ready: _Prepared,
    output: Output,
    done: Mapping[str, TaskResult],
    identity: Mapping[str, Any],
) -> None:
    """Write the manifest and the header: from now on the file is an archive."""
    source = {name: hexes for result in done.values() for name, hexes in result.source.items()}
    rows = ready.probed.measurement.rows
    tensor_of = ready.probed.original.tensor_of
    texts = {key: fixed_text(str(identity[key])) for key in ("compute", "reallm", "torch")}
    document = statistics_document(
        rows,
        tokens=predicted(ready.chunks),
        settings=ready.settings,
        digests={row.name: bytes.fromhex(source[tensor_of(row.name)]) for row in rows},
        provenance={**texts, "text": ready.text},
    )
    digests = {
        name: bytes.fromhex(hexes)
        for result in done.values()
        for name, hexes in result.sections.items()
    }
    with Writer.open(output.partial, ready.layout) as writer:
        writer.finish(document.plain(), digests)


def _report(
    output: Output, ready: _Prepared, graph: TaskGraph, began: float, *, resumed: int
) -> CalibrateReport:
    """What the finished file says of tokens that did not reach a matrix, or were left out."""
    with StatisticsFile(output.path) as file:
        facts = {name: file.facts(name) for name in file.rows}
        shapes = {name: row.shape for name, row in file.rows.items()}
        nbytes = file.nbytes
    return CalibrateReport(
        path=str(output.path),
        file_bytes=nbytes,
        matrices=len(facts),
        sequences=sum(len(chunk.numbers) for chunk in ready.chunks),
        tokens=predicted(ready.chunks),
        left_out=ready.probed.left_out,
        unreached=tuple(name for name, one in facts.items() if not one.reached),
        few={name: one.reached for name, one in facts.items() if 0 < one.reached < shapes[name][1]},
        not_finite={name: one.left_out for name, one in facts.items() if one.left_out},
        dead={name: one.dead for name, one in facts.items() if one.reached and one.dead},
        seconds=time.monotonic() - began,
        tasks_resumed=resumed,
    )


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
