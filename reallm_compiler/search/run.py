"""`reallm allocate`: a recipe with candidates and a model into recipes that fit."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.distribution import install_command
from reallm_compiler.errors import AllocateError, SourceError
from reallm_compiler.planning.build import open_model
from reallm_compiler.progress import Progress
from reallm_compiler.publish import check_file, new_file, refuse_inputs
from reallm_compiler.recipe import Recipe, load_recipe
from reallm_compiler.recipe.allocation import (
    Allocation,
    Scope,
    Target,
    target_of_bits,
    target_of_bytes,
)
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.search.choose import SmallestError
from reallm_compiler.search.damage import measure
from reallm_compiler.search.offers import find_offers
from reallm_compiler.search.report import AllocateReport, Lock
from reallm_compiler.search.search import Search
from reallm_compiler.stages.base import as_fraction

Size = str | int
Rate = str | int | float | Fraction


def allocate(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    model: str | os.PathLike[str] | Inventory | None = None,
    bytes: Size | Sequence[Size] | None = None,
    bits: Rate | Sequence[Rate] | None = None,
    scope: Scope | None = None,
    statistics: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: ClusterOptions | None = None,
    force: bool = False,
    progress: Progress = True,
) -> AllocateReport:
    """Choose for each matrix of a model among the candidates of a recipe.

    Args:
        recipe: a file, plain data, or a loaded recipe, with a section `allocate`.
        model: the checkpoint; the recipe's own `model` when None.
        bytes: the most bytes, such as `3.2GB`, or several such targets; instead of the recipe's.
        bits: the most bits per weight, or several such targets; instead of the recipe's.
        scope: what targets count, `file` or `coded`; as the recipe says when None.
        statistics: what `calibrate` measured on the checkpoint.
        output: the recipe to write; with several targets each has its own in its name. None
            writes nothing.
        cache: a folder in which what was measured and coded is kept.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that code candidates; chosen by size, cores and memory when None.
        cluster: a Ray cluster that codes them; this machine when None.
        force: replace outputs that exist.
        progress: see `reallm_compiler.progress`; as of `search.damage.measure`.

    Raises:
        AllocateError: no choice fits a target, or the recipe has no section or no target.
        ReallmError: as `compile_model` raises.
    """
    began = time.monotonic()
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    allocation = loaded.allocate
    if allocation is None:
        raise AllocateError(
            "this recipe has no section `allocate`: there is nothing to choose from",
            location=loaded.name,
            hint="add `allocate: {bytes: 3.2GB, candidates: [...]}`; see docs/allocate.md",
        )
    check_scipy()
    targets = targets_of(allocation, bytes, bits, scope)
    inventory = open_model(loaded, model)
    if not inventory.complete:
        raise SourceError(
            "this model has no weights to measure",
            location=str(inventory.path),
            hint="give a folder with weights",
        )
    paths = [None] * len(targets) if output is None else lock_paths(Path(output), targets)
    for path in paths:
        if path is None:
            continue
        given = recipe if isinstance(recipe, str | os.PathLike) else None
        refuse_inputs(path, inventory.path or None, given, statistics)
        check_file(path, force=force)
    offers = find_offers(loaded, allocation, inventory)
    jobs = {name: [one.layout.plan for one in several] for name, several in offers.of.items()}
    damage = measure(
        jobs,
        inventory,
        statistics=statistics,
        seed=loaded.seed,
        cache=cache,
        device=device,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )
    chosen_at = time.monotonic()
    search = Search(loaded, allocation, inventory, offers, damage, targets[0].scope)
    head = [
        f"Chosen by `reallm allocate` from the candidates of `{loaded.name}`; "
        "`reallm compile` takes it as it is.",
        "",
    ]
    locks = []
    for target in targets:
        try:
            choice = search.choose(target)
        except SmallestError as error:
            raise _too_small(target, search, error) from None
        locks.append(search.lock(target, choice, head))
    locks = [_written(lock, path, force=force) for lock, path in zip(locks, paths, strict=True)]
    frontier, uniform = search.frontier(), search.uniform()
    now = time.monotonic()
    return AllocateReport(
        locks=tuple(locks),
        scope=targets[0].scope,
        frontier=frontier,
        uniform=uniform,
        measured=(len(jobs), sum(map(len, jobs.values()))),
        locked=len(offers.locked),
        left=offers.left,
        seconds=now - began,
        choice_seconds=now - chosen_at,
    )


def check_scipy() -> None:
    """Refuse before any work where nothing can be chosen.

    Raises:
        AllocateError: scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise AllocateError(
            "the choice needs scipy, which is not installed",
            hint=f"install it with `{install_command('allocate')}`",
        )


def targets_of(
    allocation: Allocation,
    bytes_: Size | Sequence[Size] | None,
    bits: Rate | Sequence[Rate] | None,
    scope: Scope | None,
) -> tuple[Target, ...]:
    """The targets that are given, or else that of the recipe.

    Raises:
        AllocateError: there is none, both kinds are given, or one cannot be read.
    """
    counted = scope or allocation.scope
    if bytes_ is not None and bits is not None:
        raise AllocateError("targets are either bytes or bits, and both are given")
    try:
        if bytes_ is not None:
            sizes = [bytes_] if isinstance(bytes_, str | int) else bytes_
            found = [target_of_bytes(size, counted) for size in sizes]
        elif bits is not None:
            rates = [bits] if isinstance(bits, str | int | float | Fraction) else bits
            found = [target_of_bits(_rate(rate), counted) for rate in rates]
        else:
            own = allocation.target
            found = [] if own is None else [own if scope is None else replace(own, scope=scope)]
    except ValueError as error:
        raise AllocateError(f"a target cannot be read: {error}") from None
    if not found:
        raise AllocateError(
            "no target is given",
            location=str(allocation.location),
            hint="write `bytes: 3.2GB` or `bits: 5/2` under `allocate`, or give `--bytes 3.2GB`",
        )
    return tuple({target.text: target for target in found}.values())


def lock_paths(output: Path, targets: Sequence[Target]) -> list[Path]:
    """Where the recipe of each target is written: `lock.yaml`, or `lock-3.2GB.yaml` of several."""
    if len(targets) == 1:
        return [output]
    return [
        output.with_name(f"{output.stem}-{_short(target)}{output.suffix}") for target in targets
    ]


def _short(target: Target) -> str:
    if target.unit == "bytes":
        return target.text if target.text[-1:].isalpha() else f"{target.text}B"
    exact = f"{float(target.amount):g}"
    whole = Fraction(exact) == target.amount
    return f"{exact if whole else target.text.replace('/', '-')}bits"


def _rate(value: Rate) -> int | Fraction:
    read = as_fraction(value)
    if not isinstance(read, int | Fraction):
        raise ValueError(f"`{value}` is no number")
    return read


def _too_small(target: Target, search: Search, error: SmallestError) -> AllocateError:
    least = search.point(error.choice)
    what = "file" if target.scope == "file" else "coded part"
    nearest = f"{least.nbytes:,} bytes ({float(least.bits):.6f} bits per weight)"
    return AllocateError(
        f"no choice fits {target.text} {'bits' if target.unit == 'bits' else ''}".rstrip(),
        note=f"the smallest {what} that these candidates make is {nearest}, and the target is "
        f"{search.limit(target):,} bytes",
        hint=f"take `bytes: {least.nbytes}` or more, or add smaller candidates",
    )


def _written(lock: Lock, path: Path | None, *, force: bool) -> Lock:
    if path is None:
        return lock
    with new_file(path, force=force) as partial:
        partial.write_text(lock.text, encoding="utf-8")
    return replace(lock, path=str(path))
