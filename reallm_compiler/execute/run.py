"""The compile: recipe -> plan -> reserved file -> filled slots -> one verified archive.

Steps: (1) plan; (2) preflight of output, device, memory, disk; (3) take the lock and look at what
an interrupted run has left; (4) reserve the file at full length; (5) units in two waves, each
journalled when it is durable; (6) manifest and header; (7) rename. A run killed at any point goes
on at step 5 with what the journal holds and ends with the same bytes. A run that is asked to stop
ends at once in steps 1 to 3 and within a unit in step 5; once all units are done it ends well.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import CompileError, OutputError, ResumeError, SourceError
from reallm_compiler.execute.encode import UnitResult
from reallm_compiler.execute.events import CompileReport, Event, Preflight, UnitDone
from reallm_compiler.execute.identity import check_same, identity_of, provenance
from reallm_compiler.execute.journal import Journal
from reallm_compiler.execute.output import Output
from reallm_compiler.execute.pool import Site, results
from reallm_compiler.execute.preflight import (
    Workers,
    check_disk,
    choose_device,
    choose_workers,
)
from reallm_compiler.execute.resume import check_weights, intact_units, note_digests
from reallm_compiler.execute.stop import StopRequest, listening
from reallm_compiler.execute.training import digest_of, remove_states, state_path
from reallm_compiler.execute.trial import trial_plan, work_of
from reallm_compiler.execute.units import Unit, units_of
from reallm_compiler.execute.weights import check_duplicates
from reallm_compiler.plan.build import build, open_model
from reallm_compiler.plan.document import to_document
from reallm_compiler.plan.model import Plan
from reallm_compiler.progress import Progress, teller
from reallm_compiler.publish import refuse_inputs
from reallm_compiler.recipe import Recipe, load_recipe
from reallm_compiler.sources import Inventory
from reallm_formats import Writer

Listener = Callable[[Event], None]


def compile_model(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    model: str | os.PathLike[str] | Inventory | None = None,
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    only: str | None = None,
    resume: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    on_event: Listener | None = None,
) -> CompileReport:
    """Compile a checkpoint into an archive.

    Args:
        recipe: a shipped recipe's name, a file, plain data, or a loaded recipe.
        model: the checkpoint; the recipe's own `model` when None.
        output: the archive; the recipe's own `output` when None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that encode; chosen by size, cores and memory when None.
        only: a glob on matrix names: code those, report their errors, write nothing.
        resume: `auto` goes on where an interrupted run stood, `required` refuses to start
            afresh, `never` starts over.
        force: overwrite an existing archive when the new one is finished.
        progress: see `reallm_compiler.progress`; counts steps (matrices, and some for the rest).
            True when None, or False where `on_event` is given.
        on_event: is told of the preflight and of each finished unit.

    Raises:
        RecipeError, SourceError, OutputError, CompileError, ResumeError, CodecError: see
            `reallm_compiler.errors`; `Interrupted` after SIGINT or SIGTERM.
    """
    tell = _told(on_event is None if progress is None else progress, on_event or _silent)
    with listening() as stop, _way_on(resume):
        try:
            with stop.at_once():
                return _compile_model(
                    recipe, model, output, device, workers, only, resume, force, tell, stop
                )
        except KeyboardInterrupt:
            raise stop.interrupted() from None


@contextmanager
def _way_on(resume: str) -> Iterator[None]:
    """Hints on how to go on, made true for a run that was told to start over."""
    try:
        yield
    except CompileError as error:
        if resume == "never" and error.hint is not None:
            again = "run the same command again"
            error.hint = error.hint.replace(again, f"{again} without `--resume never`")
        raise


def _compile_model(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    model: str | os.PathLike[str] | Inventory | None,
    output: str | os.PathLike[str] | None,
    device: str,
    workers: int | None,
    only: str | None,
    resume: str,
    force: bool,
    tell: Listener,
    stop: StopRequest,
) -> CompileReport:
    began = time.monotonic()
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    inventory = open_model(loaded, model)
    plan = build(loaded, inventory)
    if not inventory.complete:
        raise SourceError(
            "this model has no weights to compile",
            location=str(inventory.path),
            hint="`reallm budget` works on a bare config; give `compile` a folder with weights",
        )
    check_duplicates(inventory)
    chosen = choose_device(device)
    if only is not None:
        whole, plan = plan, trial_plan(plan, only)
        errors = _try(plan, whole, inventory, chosen, workers, tell, stop)
        seconds = time.monotonic() - began
        return CompileReport(
            path=None,
            budget=plan.budget(),
            errors=errors,
            seconds=seconds,
            units_resumed=0,
            whole_seconds=seconds * work_of(whole) / work_of(plan),
        )
    named = output if output is not None else loaded.output
    if named is None:
        raise OutputError(
            "no output is named",
            hint="add `output: NAME.reallm` to the recipe, or give `-o NAME.reallm`",
        )
    place = Output(Path(named).absolute())
    read = recipe if isinstance(recipe, str | os.PathLike) else None
    refuse_inputs(place.path, inventory.path or None, read)
    errors, resumed = _compile(
        plan, inventory, place, chosen, workers, resume=resume, force=force, tell=tell, stop=stop
    )
    return CompileReport(
        path=str(place.path),
        budget=plan.budget(),
        errors=errors,
        seconds=time.monotonic() - began,
        units_resumed=resumed,
    )


def _compile(
    plan: Plan,
    inventory: Inventory,
    place: Output,
    device: torch.device,
    workers: int | None,
    *,
    resume: str,
    force: bool,
    tell: Listener,
    stop: StopRequest,
) -> tuple[dict[str, float], int]:
    """Errors of all matrices, and how many units an interrupted run had done."""
    waves = units_of(plan)
    units = [unit for wave in waves for unit in wave]
    identity = identity_of(plan, inventory, device)
    place.check(force=force or place.journal.exists())
    with _journal_of(place) as journal:
        stop.kept = bool(journal.records)
        done = _what_is_done(journal, plan, units, identity, place, resume=resume)
        if done is not None:
            check_weights(plan, inventory, units, done, tell)
        if done is not None and place.holds_finished(done):
            journal.remove()
            return _errors(plan, done), len(units)
        place.check(force=force)
        left = len(units) - len(done or {})
        chosen = choose_workers(plan, workers, left, device)
        disk = check_disk(place.path.parent, plan.layout.file_bytes if done is None else 0)
        with stop.in_order():
            if done is None:
                place.reserve(plan.layout)
                remove_states(place.partial)
                journal.clear()
                journal.append({"identity": identity})
                done = {}
            stop.kept = True
            progress = _Progress(units, done, tell)
            tell(
                _preflight(
                    chosen,
                    device,
                    units,
                    progress,
                    file_bytes=plan.layout.file_bytes,
                    disk_bytes=0 if done else plan.layout.file_bytes,
                    disk_free_bytes=disk,
                    operations=sum(unit.operations for unit in units if unit.key not in done),
                    notes=plan.notes,
                )
            )
            resumed = len(done)
            read = {
                name: hexes for record in done.values() for name, hexes in record["source"].items()
            }
            site = Site(plan, inventory, place.partial, device, digest_of(identity), tell)
            with closing(results(site, chosen.count, waves, done, stop)) as found:
                for result in found:
                    note_digests(read, result.source, inventory.path)
                    record = result.to_record()
                    journal.append(record)
                    state_path(place.partial, result.unit).unlink(missing_ok=True)
                    done[result.unit] = record
                    progress.finished(result)
            _finish(plan, place, done, identity)
            place.publish()
            remove_states(place.partial)
            journal.remove()
    return _errors(plan, done), resumed


@contextmanager
def _journal_of(place: Output) -> Iterator[Journal]:
    """The locked journal; one that still holds nothing when the run fails is removed."""
    with Journal.open(place.journal) as journal:
        try:
            yield journal
        except BaseException:
            if not journal.records:
                journal.remove()
            raise


def _what_is_done(
    journal: Journal,
    plan: Plan,
    units: list[Unit],
    identity: Mapping[str, Any],
    place: Output,
    *,
    resume: str,
) -> dict[str, Mapping[str, Any]] | None:
    """Finished units of an interrupted run that this one goes on with; None to start afresh."""
    found = journal.records[0].get("identity") if journal.records else None
    records: dict[str, Mapping[str, Any]] = {
        record["unit"]: record for record in journal.records[1:]
    }
    left = found is not None and (place.partial.exists() or place.holds_finished(records))
    if resume == "required" and not left:
        raise ResumeError(
            "there is no interrupted compile of this output",
            location=str(place.path),
            hint="leave out `--resume required` to start afresh",
        )
    if resume == "never" or not left or found is None:
        return None
    check_same(found, identity, str(place.path))
    if not place.partial.exists():
        return records
    return intact_units(place.partial, plan.layout, units, records)


def _try(
    plan: Plan,
    whole: Plan,
    inventory: Inventory,
    device: torch.device,
    workers: int | None,
    tell: Listener,
    stop: StopRequest,
) -> dict[str, float]:
    """Errors of the plan's matrices, a part of the `whole` plan's, without a file."""
    matrices = units_of(plan)[1]
    chosen = choose_workers(plan, workers, len(matrices), device)
    progress = _Progress(matrices, {}, tell)
    tell(
        _preflight(
            chosen,
            device,
            matrices,
            progress,
            file_bytes=0,
            disk_bytes=0,
            disk_free_bytes=0,
            operations=whole.budget().totals.training_operations,
            notes=plan.notes,
        )
    )
    errors: dict[str, float] = {}
    done: dict[str, Any] = {}
    site = Site(plan, inventory, None, device, "", tell)
    with closing(results(site, chosen.count, ([], matrices), done, stop)) as found:
        for result in found:
            done[result.unit] = result.to_record()
            errors.update(result.errors)
            progress.finished(result)
    return {matrix.name: errors[matrix.name] for matrix in plan.matrices}


def _finish(
    plan: Plan, place: Output, done: Mapping[str, Mapping[str, Any]], identity: Mapping[str, Any]
) -> None:
    """Write the manifest and the header: from now on the file is an archive."""
    source = hashlib.sha256()
    tensors = {name: hexes for record in done.values() for name, hexes in record["source"].items()}
    for name in sorted(tensors):
        source.update(f"{name} {tensors[name]}\n".encode())
    digests = {
        name: bytes.fromhex(hexes)
        for record in done.values()
        for name, hexes in record["sections"].items()
    }
    document = to_document(
        plan.recipe,
        plan.matrices,
        plan.ties,
        errors=_errors(plan, done),
        provenance=provenance(identity, source.digest()),
    )
    with Writer.open(place.partial, plan.layout) as writer:
        writer.finish(document, digests)


def _errors(plan: Plan, done: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    errors = {name: value for record in done.values() for name, value in record["errors"].items()}
    return {matrix.name: errors[matrix.name] for matrix in plan.matrices}


class _Progress:
    """Counts finished units and tells of each."""

    def __init__(self, units: list[Unit], done: Mapping[str, Any], tell: Listener) -> None:
        self.by_key = {unit.key: unit for unit in units}
        self.tell = tell
        self.units = len(done)
        self.weights = sum(unit.weights for unit in units if unit.key in done)

    def finished(self, result: UnitResult) -> None:
        unit = self.by_key[result.unit]
        self.units += 1
        self.weights += unit.weights
        self.tell(
            UnitDone(
                name=unit.title,
                weights=unit.weights,
                errors=result.errors,
                units_done=self.units,
                weights_done=self.weights,
            )
        )


def _preflight(
    chosen: Workers,
    device: torch.device,
    units: list[Unit],
    progress: _Progress,
    *,
    file_bytes: int,
    disk_bytes: int,
    disk_free_bytes: int,
    operations: int,
    notes: tuple[str, ...],
) -> Preflight:
    """What is told before the first unit."""
    return Preflight(
        file_bytes=file_bytes,
        disk_bytes=disk_bytes,
        disk_free_bytes=disk_free_bytes,
        memory_bytes=chosen.memory_bytes,
        memory_free_bytes=chosen.memory_free_bytes,
        device=_device_title(device),
        device_bytes=chosen.device_bytes,
        device_free_bytes=chosen.device_free_bytes,
        workers=chosen.count,
        units=len(units),
        units_done=progress.units,
        weights=sum(unit.weights for unit in units),
        weights_done=progress.weights,
        operations=operations,
        notes=notes,
    )


def _device_title(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _told(progress: Progress, listen: Listener) -> Listener:
    """What hears every event, and tells of the steps among them as progress."""
    count = teller(progress, "compile", "steps")
    units = 0

    def hear(event: Event) -> None:
        nonlocal units
        if isinstance(event, Preflight):
            units = event.units
            count(event.units_done, units)
        elif isinstance(event, UnitDone):
            count(event.units_done, units)
        listen(event)

    return hear


def _silent(event: Event) -> None:
    """Nobody listens."""
