"""The compile: recipe -> plan -> reserved file -> filled slots -> one verified archive.

Steps: (1) plan; (2) preflight of output, device, memory, disk; (3) take the lock and look at what
an interrupted run has left; (4) reserve the file at full length; (5) units in two waves, each
journalled when it is durable; (6) manifest and header; (7) rename. A run killed at any point goes
on at step 5 with what the journal holds and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import OutputError, ResumeError, SourceError
from reallm_compiler.execute.encode import Encoder, UnitResult, fix_numerics
from reallm_compiler.execute.events import CompileReport, Event, Preflight, UnitDone
from reallm_compiler.execute.identity import check_same, identity_of, provenance
from reallm_compiler.execute.journal import Journal
from reallm_compiler.execute.output import Output, intact_units
from reallm_compiler.execute.pool import Pool
from reallm_compiler.execute.preflight import check_disk, choose_device, choose_workers
from reallm_compiler.execute.stop import Interrupted, StopRequest, listening
from reallm_compiler.execute.training import Watches, remove_states, run_name, state_path
from reallm_compiler.execute.trial import trial_plan, work_of
from reallm_compiler.execute.units import Unit, units_of
from reallm_compiler.execute.weights import check_duplicates
from reallm_compiler.plan.build import build, open_model
from reallm_compiler.plan.document import to_document
from reallm_compiler.plan.model import Plan
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
        on_event: is told of the preflight and of each finished unit.

    Raises:
        RecipeError, SourceError, OutputError, CompileError, ResumeError, CodecError: see
            `reallm_compiler.errors`; `Interrupted` after SIGINT or SIGTERM.
    """
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
    tell = on_event or _silent
    chosen = choose_device(device)
    if only is not None:
        whole, plan = plan, trial_plan(plan, only)
        errors = _try(plan, whole, inventory, chosen, workers, tell)
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
    errors, resumed = _compile(
        plan, inventory, place, chosen, workers, resume=resume, force=force, tell=tell
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
) -> tuple[dict[str, float], int]:
    """Errors of all matrices, and how many units an interrupted run had done."""
    waves = units_of(plan)
    units = [unit for wave in waves for unit in wave]
    identity = identity_of(plan, inventory, device)
    place.check(force=force or place.journal.exists())
    with Journal.open(place.journal) as journal:
        done = _what_is_done(journal, plan, units, identity, place, resume=resume)
        if done is not None and place.holds_finished(done):
            journal.remove()
            return _errors(plan, done), len(units)
        place.check(force=force)
        if done is None:
            try:
                chosen = choose_workers(plan, workers, len(units), device)
                disk = check_disk(place.path.parent, plan.layout.file_bytes)
                place.reserve(plan.layout)
            except BaseException:
                if not journal.records:
                    journal.remove()
                raise
            remove_states(place.partial)
            journal.clear()
            journal.append({"identity": identity})
            done = {}
        else:
            chosen = choose_workers(plan, workers, len(units) - len(done), device)
            disk = check_disk(place.path.parent, 0)
        resumed = len(done)
        progress = _Progress(units, done, tell)
        tell(
            Preflight(
                file_bytes=plan.layout.file_bytes,
                disk_bytes=plan.layout.file_bytes if resumed == 0 else 0,
                disk_free_bytes=disk,
                memory_bytes=chosen.memory_bytes,
                memory_free_bytes=chosen.memory_free_bytes,
                device=_device_title(device),
                device_bytes=chosen.device_bytes,
                device_free_bytes=chosen.device_free_bytes,
                workers=chosen.count,
                units=len(units),
                units_done=resumed,
                weights=sum(unit.weights for unit in units),
                weights_done=progress.weights,
                operations=sum(unit.operations for unit in units if unit.key not in done),
            )
        )
        site = _Site(plan, inventory, place.partial, device, run_name(identity), tell)
        for result in _run(site, chosen.count, waves, done):
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
        if not journal.records:
            journal.remove()
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


@dataclass(frozen=True, slots=True)
class _Site:
    """Where units are done: what of, into which file (None for a trial), on what, for whom."""

    plan: Plan
    inventory: Inventory
    partial: Path | None
    device: torch.device
    run: str
    tell: Listener


def _run(
    site: _Site,
    workers: int,
    waves: tuple[list[Unit], list[Unit]],
    done: Mapping[str, Any],
) -> Iterator[UnitResult]:
    """Results of the units that are not done yet, wave after wave."""
    todo = [[unit for unit in wave if unit.key not in done] for wave in waves]
    with listening() as stop:
        if workers == 1:
            yield from _run_here(site, todo, stop)
        else:
            pool = Pool(
                site.plan,
                site.inventory,
                site.partial,
                str(site.device),
                workers,
                site.run,
                site.tell,
            )
            try:
                for wave in todo:
                    yield from pool.run(wave, stop)
            finally:
                pool.close()
        if stop.requested and any(unit.key not in done for wave in todo for unit in wave):
            raise Interrupted(
                "stopped: the finished matrices are kept",
                hint="run the same command again to go on where it stood",
            )


def _run_here(site: _Site, todo: list[list[Unit]], stop: StopRequest) -> Iterator[UnitResult]:
    watches = Watches(
        partial=site.partial, run=site.run, tell=site.tell, stopped=lambda: stop.requested
    )
    with _fixed_numerics(site.device):
        encoder = Encoder(site.plan, site.inventory, site.partial, str(site.device), watches)
        try:
            for wave in todo:
                for unit in wave:
                    if stop.requested:
                        return
                    yield encoder.run(unit)
        finally:
            encoder.close()


@contextmanager
def _fixed_numerics(device: torch.device) -> Iterator[None]:
    """The fixed settings of torch, and the caller's own again afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch_mode: Any = torch.utils.deterministic  # its one attribute is made at run time
    filled = torch_mode.fill_uninitialized_memory
    fix_numerics(device)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch_mode.fill_uninitialized_memory = filled


def _try(
    plan: Plan,
    whole: Plan,
    inventory: Inventory,
    device: torch.device,
    workers: int | None,
    tell: Listener,
) -> dict[str, float]:
    """Errors of the plan's matrices, a part of the `whole` plan's, without a file."""
    matrices = units_of(plan)[1]
    chosen = choose_workers(plan, workers, len(matrices), device)
    progress = _Progress(matrices, {}, tell)
    tell(
        Preflight(
            file_bytes=0,
            disk_bytes=0,
            disk_free_bytes=0,
            memory_bytes=chosen.memory_bytes,
            memory_free_bytes=chosen.memory_free_bytes,
            device=_device_title(device),
            device_bytes=chosen.device_bytes,
            device_free_bytes=chosen.device_free_bytes,
            workers=chosen.count,
            units=len(matrices),
            units_done=0,
            weights=sum(unit.weights for unit in matrices),
            weights_done=0,
            operations=whole.budget().totals.training_operations,
        )
    )
    errors: dict[str, float] = {}
    done: dict[str, Any] = {}
    site = _Site(plan, inventory, None, device, "", tell)
    for result in _run(site, chosen.count, ([], matrices), done):
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
    writer = Writer.open(place.partial, plan.layout)
    try:
        writer.finish(document, digests)
    finally:
        writer.close()


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


def _device_title(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _silent(event: Event) -> None:
    """Nobody listens."""
