"""A compile into an archive: what is left of an earlier run, the tasks, and the finished file.

Steps: (1) take the lock and look at what an interrupted run has left; (2) check memory and disk;
(3) reserve the file at full length; (4) run the tasks, each journalled when it is durable;
(5) manifest and header; (6) rename. A run killed at any point goes on at step 4 with what the
journal holds and ends with the same bytes. A run that is asked to stop ends at once in steps 1
and 2 and within a task in step 4; once all tasks are done it ends well.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.execute.cluster import backend_on, workers_on
from reallm_compiler.execute.fit.text import TextInput, text_bytes
from reallm_compiler.execute.identity import identity_of, provenance
from reallm_compiler.execute.options import CompileOptions
from reallm_compiler.execute.preflight import check_disk, preflight_event
from reallm_compiler.execute.resume import check_weights
from reallm_compiler.execute.runner import CompileJob
from reallm_compiler.execute.statistics import StatisticsInput
from reallm_compiler.execute.tasks import compile_tasks
from reallm_compiler.planning.document import to_document
from reallm_compiler.planning.model import Plan
from reallm_compiler.runs.backends import results
from reallm_compiler.runs.counter import TaskCounter, record
from reallm_compiler.runs.identity import digest_of
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.parcels import ReservedFile
from reallm_compiler.runs.resume import finished_tasks, start
from reallm_compiler.runs.sources import checked_sources
from reallm_compiler.runs.stop import StopRequest
from reallm_compiler.runs.tasks import TaskResult, section_digests
from reallm_compiler.runs.training import StateFiles
from reallm_formats import Writer


def compile_archive(
    plan: Plan,
    inventory: Inventory,
    output: Output,
    machines: Machines,
    options: CompileOptions,
    stop: StopRequest,
    statistics: StatisticsInput | None = None,
    text: TextInput | None = None,
) -> tuple[dict[str, float], int]:
    """Relative errors of all matrices, and how many tasks an interrupted run had done.

    Raises:
        OutputError, CompileError, ResumeError, SourceError, CodecError: as `compile_model` does.
    """
    graph = compile_tasks(plan, 0 if text is None else text.ids.numel())
    identity = identity_of(plan, inventory, machines.fields, statistics, text)
    states = StateFiles(output.partial, digest_of(identity))
    output.check(force=options.force or output.journal.exists())
    with output.open_journal() as journal:
        stop.kept = bool(journal.records)
        found = finished_tasks(journal, graph, identity, output, plan.layout, resume=options.resume)
        if found is not None:
            check_weights(plan, inventory, graph, found, options.on_event)
        if found is not None and output.is_finished(found):
            journal.remove()
            return _errors(plan, found), len(graph)
        output.check(force=options.force)
        reserve = found is None
        done = found or {}
        learning = text_bytes(plan, text)
        workers = workers_on(machines, plan, options.workers, len(graph) - len(done), learning)
        disk = check_disk(output.path.parent, plan.layout.file_bytes if reserve else 0)
        with stop.in_order():
            if reserve:
                output.reserve(plan.layout)
                states.remove_all()
                start(journal, identity)
            stop.kept = True
            resumed = len(done)
            counter = TaskCounter(graph, done, options.on_event)
            options.on_event(
                preflight_event(
                    workers,
                    machines.title,
                    graph,
                    counter,
                    file_bytes=plan.layout.file_bytes,
                    disk_bytes=0 if done else plan.layout.file_bytes,
                    disk_free_bytes=disk,
                    operations=sum(t.operations for t in graph.tasks if t.key not in done),
                    notes=plan.notes,
                )
            )
            job = CompileJob(
                plan=plan,
                inventory=inventory,
                device=machines.device,
                states=states,
                statistics=statistics,
                text=text,
                cache=options.cache_folder,
            )
            reserved = ReservedFile(output.partial, plan.layout)
            backend = backend_on(machines, plan, workers.count, learning, reserved)
            running = results(backend, job, graph, done, stop, options.on_event)
            with closing(running):
                same = checked_sources(running, done, inventory.path)
                record(same, done, journal, states, counter)
            _finish(plan, output, done, identity)
            output.publish()
            states.remove_all()
            journal.remove()
    return _errors(plan, done), resumed


def _finish(
    plan: Plan, output: Output, done: Mapping[str, TaskResult], identity: Mapping[str, Any]
) -> None:
    """Write the manifest and the header: from now on the file is an archive."""
    document = to_document(
        plan.recipe,
        plan.matrices,
        plan.ties,
        errors=_errors(plan, done),
        provenance=provenance(identity, done.values()),
    )
    with Writer.open(output.partial, plan.layout) as writer:
        writer.finish(document, section_digests(done.values()))


def _errors(plan: Plan, done: Mapping[str, TaskResult]) -> dict[str, float]:
    errors = {name: value for result in done.values() for name, value in result.errors.items()}
    return {matrix.name: errors[matrix.name] for matrix in plan.matrices}
