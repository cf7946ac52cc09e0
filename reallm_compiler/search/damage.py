"""The damage that coding each matrix by each of several plans does to a model, measured.

Every candidate is really coded, by the way that a compile codes. With measured gradients the KL
divergence that its error E alone causes is predicted as 1/2 tr(HOw E HIw E^T) / gx, the Kronecker
form of the Fisher information (`codecs.statistics`); without, by what noise and shrinking cost in
this matrix (`search.noise`). To first order the damages of several matrices add up, but for those
of smaller matrices (`search.joint`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.cluster import backend_on, workers_on
from reallm_compiler.execute.preflight import DEVICE_TYPES
from reallm_compiler.execute.statistics import StatisticsInput, check_rows, original_name
from reallm_compiler.execute.trial import plan_of
from reallm_compiler.models.weights import Weights
from reallm_compiler.progress import OnProgress, Progress, progress_callback
from reallm_compiler.runs.backends import Backend, results
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.machines import Machines, check_own_kind
from reallm_compiler.runs.open_machines import open_machines
from reallm_compiler.runs.stop import StopRequest, catch_signals
from reallm_compiler.search.candidates import Candidates, Planned, candidates, planned
from reallm_compiler.search.measure import (
    DAMAGE,
    Coded,
    Found,
    MeasureJob,
    MeasureResult,
    measure_tasks,
)
from reallm_compiler.search.noise import Slopes
from reallm_compiler.search.slopes import slopes
from reallm_compiler.stages import MatrixPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """What coding one matrix by one plan costs.

    Attributes:
        error: ||W - W^||^2 / ||W||^2, relative squared error of the coded matrix.
        kl: predicted KL(original || coded) that this matrix alone causes, in nats per token.
        shift: size of the change of the logits that adds up with those by other matrices. Its
            square is a part of `kl`.
        direction: float32 [k], of norm 1, of that change; None where none is known. All candidates
            of a matrix have the same.
    """

    error: float
    kl: float
    shift: float = 0.0
    direction: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def alone(self) -> float:
        """The part of the KL that adds up with that of other matrices."""
        return self.kl - self.shift**2


def measure(
    jobs: Mapping[str, Sequence[MatrixPlan]],
    inventory: Inventory,
    *,
    statistics: str | os.PathLike[str] | None = None,
    seed: int = 0,
    decoders: Mapping[str, Path] | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep: bool = True,
    device: str = "auto",
    workers: int | None = None,
    cluster: ClusterOptions | None = None,
    progress: Progress = False,
) -> dict[str, list[Damage]]:
    """The damage of each candidate plan of each matrix, in the order of the plans.

    What a share group has in common is learned of all matrices that have a candidate with an equal
    plan.

    Args:
        jobs: candidate plans by name of the matrix.
        inventory: of the checkpoint, prepared as the recipe says.
        statistics: what `calibrate` measured on the checkpoint. Without it, and for matrices of
            which it has no gradients, the model runs on a text that it writes itself.
        seed: the recipe's.
        decoders: files of trained decoders that plans use as they are, by digest.
        cache: a folder in which damages and coded matrices are looked up and kept.
        keep: keep coded matrices in it, for `compile` to take over; those of share groups never
            are, as who shares is not known before the choice.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that work; chosen by size, cores and memory when None. The numbers do
            not depend on it.
        cluster: a Ray cluster that works; this machine when None.
        progress: see `reallm_compiler.progress`; counts weights, those of a matrix once for each
            candidate, and then, where there are no gradients, runs of the model.

    Raises:
        CompileError: a name is no matrix of the model, or memory or disk do not do; `Interrupted`
            after SIGINT or SIGTERM.
        SourceError, CodecError, CalibrateError, FormatError: as of `compile_model`.
    """
    matrices = planned(jobs, inventory)
    with catch_signals() as stop, ExitStack() as stack:
        folder = Path(cache).absolute() if cache is not None else None
        stop.kept = folder is not None
        if folder is None:  # processes pass on by it what they have in common
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="reallm-")))
            keep = False
        try:
            with stop.at_once():
                machines = stack.enter_context(
                    open_machines(device, CompileError, types=DEVICE_TYPES, cluster=cluster)
                )
                _check_cluster(cluster, machines, cache)
                chosen = machines.device
                checked = _checked(matrices, inventory, statistics)
                wanted = candidates(matrices, inventory, checked, seed, chosen)
        except KeyboardInterrupt:
            raise stop.interrupted() from None
        job = MeasureJob(
            candidates=wanted,
            inventory=inventory,
            decoders=dict(decoders or {}),
            statistics=checked,
            seed=seed,
            device=chosen,
            cache=folder,
            keep=keep,
        )
        report = progress_callback(progress, "measure", "weights")
        found = _found(job, machines, workers, stop, report)
        bare = [name for name, several in found.items() if any(one.kl is None for one in several)]
        costs = slopes(
            inventory,
            bare,
            seed=seed,
            machines=machines,
            workers=workers,
            cache=folder,
            stop=stop,
            report=progress_callback(progress, "run", "runs of the model"),
        )
    return {
        name: [_damage(one, costs.get(name)) for one in several] for name, several in found.items()
    }


def _damage(found: Found, costs: Slopes | None) -> Damage:
    """The damage of a candidate."""
    if found.kl is not None:
        return Damage(error=found.error, kl=found.kl)
    assert costs is not None  # of all matrices without a KL
    assert found.shrink is not None  # as there is no KL
    return Damage(
        error=found.error,
        kl=costs.kl(found.error, found.shrink),
        shift=costs.shift(found.shrink),
        direction=costs.direction,
    )


def _checked(
    matrices: Planned, inventory: Inventory, given: str | os.PathLike[str] | None
) -> StatisticsInput | None:
    """The statistics, which are those of this model.

    Raises:
        CompileError: a plan needs statistics and none are given.
        CalibrateError, SourceError, FormatError: as of `check_statistics`.
    """
    needing = [
        next((one for one in several if one.plan.needs_statistics), None)
        for several in matrices.values()
    ]
    if given is None:
        if any(one is not None for one in needing):
            raise CompileError(
                "these candidates need statistics of the model",
                hint=f"measure them with `reallm calibrate {inventory.path or 'MODEL'} --text FILE "
                "-o model.stats`, then give `--stats model.stats`",
            )
        return None
    path = Path(given).absolute()
    weights = Weights(inventory)
    with StatisticsFile(path) as file:
        known = [
            several[0]
            for several, one in zip(matrices.values(), needing, strict=True)
            if one is None
            and original_name(several[0], weights.by_name[several[0].tensor]) in file.rows
        ]
        check_rows([*(one for one in needing if one is not None), *known], inventory, file)
        return StatisticsInput(path, file.digest)


def _found(
    job: MeasureJob,
    machines: Machines,
    workers: int | None,
    stop: StopRequest,
    report: OnProgress,
) -> dict[str, list[Found]]:
    """What is found of each candidate, in order: looked up, or measured now."""
    wanted = job.candidates
    found = _known(wanted, Cache(job.cache / DAMAGE))
    left = {
        name: tuple(one for one in several if one.key not in found)
        for name, several in wanted.of_matrix.items()
    }
    left = {name: several for name, several in left.items() if several}
    groups = {one.group for several in left.values() for one in several}
    work = replace(
        wanted,
        of_matrix=left,
        groups={key: members for key, members in wanted.groups.items() if key in groups},
    )
    total = sum(one.matrix.numel for several in wanted.of_matrix.values() for one in several)
    done = total - sum(one.matrix.numel for several in left.values() for one in several)

    def emit(event: Any) -> None:  # noqa: ANN401 - whatever a task sends
        nonlocal done
        if isinstance(event, Coded):
            done += event.numel
            report(done, total)

    report(done, total)
    if left:
        graph = measure_tasks(work)
        backend = _backend(machines, work, workers)
        running = results(backend, replace(job, candidates=work), graph, {}, stop, emit)
        with closing(running):
            for result in running:
                assert isinstance(result, MeasureResult)  # such are the tasks
                found.update(result.found)
    return {name: [found[one.key] for one in several] for name, several in wanted.of_matrix.items()}


def _known(wanted: Candidates, cache: Cache) -> dict[str, Found]:
    """What the cache holds, by key."""
    found = {}
    for several in wanted.of_matrix.values():
        for one in several:
            entry = cache.get(one.key)
            known = None if entry is None else Found.of(entry[0])
            if known is not None:
                found[one.key] = known
    return found


def _backend(machines: Machines, work: Candidates, asked: int | None) -> Backend:
    """Processes that fit into memory with the candidate of each matrix that takes most."""
    heaviest = [
        max(
            (one.matrix for one in several),
            key=lambda matrix: (matrix.plan.needs_statistics, matrix.layout.cost.host_bytes),
        )
        for several in work.of_matrix.values()
    ]
    plan = plan_of(tuple(heaviest), {"reallm": 1}, {}, {})
    times = max(len(several) for several in work.of_matrix.values())
    count = workers_on(machines, plan, asked, len(heaviest), times=times).count
    return backend_on(machines, plan, count)


def _check_cluster(
    cluster: ClusterOptions | None, machines: Machines, cache: str | os.PathLike[str] | None
) -> None:
    """Refuse a cluster that cannot share the cache, or is not of this machine's kind.

    Raises:
        CompileError: why.
    """
    if cluster is None:
        return
    if cluster.address != "local" and (cache is None or not cluster.shared_storage):
        raise CompileError(
            "on a cluster candidates are measured with a cache that all nodes share",
            note="what the matrices of a share group have in common is handed over in it",
            hint="give `--cache FOLDER` where all nodes see it, and say so with `--shared-storage`",
        )
    check_own_kind(machines, "looks up what was measured before", CompileError)
