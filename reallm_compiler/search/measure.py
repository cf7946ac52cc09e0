"""The tasks of a measurement: candidates of each matrix are coded, and their damage is kept.

What the matrices of a share group have in common is learned first, as if all of them were coded by
that candidate. Tables and damages go into a cache, which is how processes pass tables on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs.decode import MatrixDecoder
from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import SourceError
from reallm_compiler.execute.bands import BandCoder, band_rows, by_bands
from reallm_compiler.execute.coder import MatrixCoder, located
from reallm_compiler.execute.kept_sections import fits
from reallm_compiler.execute.runner import THREADS
from reallm_compiler.execute.statistics import StatisticsInput
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.stop import Interrupted
from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult
from reallm_compiler.search.candidates import Candidate, Candidates
from reallm_compiler.storage.base import SectionSpec

DAMAGE = "damage"
"""Folder of a cache that holds damages."""

GROUP = "group"
"""What the key of a task begins with that learns what a share group has in common."""

SHARED = "shared"
"""Folder of a cache that holds what share groups have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What coding a matrix costs.

    Attributes:
        error: ||W - W^||^2 / ||W||^2.
        kl: 1/2 tr(HOw E HIw E^T) / gx, in nats per token; None without measured gradients.
        shrink: <W - W^, W> / ||W||^2, the share of W by which W^ is smaller; None with a KL, which
            says all of the error.
    """

    error: float
    kl: float | None = None
    shrink: float | None = None

    def facts(self) -> dict[str, str]:
        """The facts of an entry of the cache."""
        numbers = {"error": self.error, "kl": self.kl, "shrink": self.shrink}
        return {name: "" if one is None else one.hex() for name, one in numbers.items()}

    @staticmethod
    def of(facts: Mapping[str, str]) -> Found | None:
        """What an entry of the cache says; None if it is not one of these."""
        try:
            error, kl = float.fromhex(facts["error"]), facts["kl"]
            if kl:
                found = Found(error=error, kl=float.fromhex(kl))
            else:
                found = Found(error=error, shrink=float.fromhex(facts["shrink"]))
        except (KeyError, ValueError, OverflowError):
            return None
        known = 0 <= error < math.inf and 0 <= (found.kl or 0.0) < math.inf
        return found if known and math.isfinite(found.shrink or 0.0) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """An event: a candidate was coded.

    Attributes:
        numel: weights of its matrix.
    """

    numel: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureResult(TaskResult):
    """What a task has found, by the key of each candidate."""

    found: dict[str, Found] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureJob:
    """All that the tasks of one measurement have in common (`runs.job.Job`).

    Attributes:
        candidates: what is to be measured.
        inventory: of the checkpoint.
        decoders: files of trained decoders that are used as they are, by digest.
        statistics: by which errors are weighed; None for none.
        seed: the recipe's.
        device: where the work runs.
        cache: the folder.
        keep: keep in it the sections of matrices without a share group, too.
    """

    candidates: Candidates
    inventory: Inventory
    decoders: Mapping[str, Path]
    statistics: StatisticsInput | None
    seed: int
    device: torch.device
    cache: Path
    keep: bool

    @contextmanager
    def open(self, context: Context) -> Iterator[MeasureRunner]:
        """A runner in this process."""
        with (
            fixed_numerics(THREADS, self.device),
            nullcontext() if self.statistics is None else self.statistics.open() as statistics,
        ):
            cache = self.cache if self.keep else None
            coder = MatrixCoder(
                self.inventory,
                self.seed,
                self.device,
                self.decoders,
                statistics,
                cache,
                keep_groups=False,
            )
            yield MeasureRunner(self, coder, context)


def measure_tasks(candidates: Candidates) -> TaskGraph:
    """A task for each share group, and one for each matrix, which needs those of its groups."""
    groups = [
        Task(key=f"{GROUP}:{key}", title=f"share group {members[0].plan.share}")
        for key, members in candidates.groups.items()
    ]
    tasks = []
    for name, several in candidates.of_matrix.items():
        needs = dict.fromkeys(f"{GROUP}:{one.group}" for one in several if one.group is not None)
        numel = sum(one.matrix.numel for one in several)
        tasks.append(Task(key=f"matrix:{name}", title=name, needs=tuple(needs), numel=numel))
    return TaskGraph([*groups, *tasks])


class MeasureRunner:
    """Does the tasks of one measurement (`runs.job.Runner`).

    Args:
        job: the measurement.
        coder: codes matrices.
        context: how progress is reported, and a stop is asked for.
    """

    def __init__(self, job: MeasureJob, coder: MatrixCoder, context: Context) -> None:
        self._job = job
        self._coder = coder
        self._context = context
        self._damages = Cache(job.cache / DAMAGE)
        self._shared = Cache(job.cache / SHARED)

    def run(self, task: Task) -> MeasureResult:
        """Do one task.

        Raises:
            SourceError: a shard cannot be read, or has changed.
            CodecError: a matrix cannot be coded.
            CompileError: the cache cannot be written, or memory runs out.
            Interrupted: a stop was asked for within the task.
        """
        result = MeasureResult(task=task.key)
        kind, _, name = task.key.partition(":")
        with oom_to_error(task.title):
            if kind == GROUP:
                self._common(name)
            else:
                self._measure(self._job.candidates.of_matrix[name], result)
        return result

    def _measure(self, candidates: tuple[Candidate, ...], result: MeasureResult) -> None:
        first = candidates[0].matrix
        statistics = self._coder.measured(first)
        for candidate in candidates:
            if self._context.stop_requested():
                raise Interrupted(
                    "stopped: what was measured is kept in the cache",
                    hint="run the same command again to go on where it stopped",
                )
            found = self._found(candidate, statistics)
            self._damages.put(candidate.key, found.facts(), {})
            result.found[candidate.key] = found
            self._context.emit(Coded(numel=first.numel))

    def _found(self, candidate: Candidate, statistics: MatrixStatistics | None) -> Found:
        matrix = candidate.matrix
        weighed = statistics is not None and statistics.weighted_outputs is not None
        if by_bands(matrix) and not weighed:
            return self._found_by_bands(matrix)
        loaded = self._coder.load(matrix)
        if loaded.source != self._job.candidates.sources[matrix.name]:
            raise SourceError(
                f"{matrix.tensor} has changed while it was read",
                location=self._job.inventory.path,
                hint="leave the checkpoint alone and run the same command again",
            )
        shared = None if candidate.group is None else self._common(candidate.group)
        encoded = self._coder.encode(matrix, loaded, shared, statistics=statistics)
        error = encoded.relative_error**2
        if statistics is None or not weighed:
            return Found(error=error, shrink=encoded.shrink)
        decoder = self._coder.decoder_of(matrix, encoded.sections, shared)
        return Found(error=error, kl=predicted_kl(error_of(loaded.weight, decoder), statistics))

    def _found_by_bands(self, matrix: PlannedMatrix) -> Found:
        bands = self._coder.weights.bands(matrix.tensor, band_rows(matrix.shape[1]))
        coder = BandCoder(
            matrix,
            (band.to(self._job.device) for band in bands),
            seed_for(self._job.seed, matrix.name),
        )
        with located(lambda: matrix.name):
            for _ in coder.codes():
                pass
        return Found(error=coder.relative_error**2, shrink=coder.shrink)

    def _common(self, key: str) -> Sections:
        """What a share group has in common: as it was learned before, or learned now."""
        members = self._job.candidates.groups[key]
        known = self._known(key, members[0].layout.shared_sections)
        if known is not None:
            return known
        group = members[0].plan.share
        assert group is not None
        fitted = self._coder.fit_group(group, members)
        kept = {role: data.cpu().contiguous() for role, data in fitted.items()}
        self._shared.put(key, {}, kept)
        return fitted

    def _known(self, key: str, specs: Sequence[SectionSpec]) -> Sections | None:
        """What the cache holds of a share group, if it is what its size law says."""
        entry = self._shared.get(key)
        if entry is None or not fits(entry[1], specs):
            return None
        return {role: data.to(self._job.device) for role, data in entry[1].items()}


def error_of(weight: torch.Tensor, decoder: MatrixDecoder) -> torch.Tensor:
    """float32 [p, q]: W - W^."""
    error = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for first, last in decoder.panels():
        decoded = decoder.rows(first, last)
        error[first:last] = weight[first:last].to(decoded.dtype) - decoded
    return error


PANEL = 1024
"""Rows whose products are held at once."""


def predicted_kl(error: torch.Tensor, statistics: MatrixStatistics) -> float:
    """1/2 tr(HOw E HIw E^T) / gx: the KL in nats per token that an error of a matrix causes.

    Args:
        error: E, float32 [p, q].
        statistics: with weighted moments.
    """
    inputs, outputs, energy = (
        statistics.weighted_inputs,
        statistics.weighted_outputs,
        statistics.energy,
    )
    if inputs is None or outputs is None or not energy:  # no gradient ever reached it
        return 0.0
    one = unit(error)
    scaled = error / one
    total = 0.0
    for first in range(0, len(error), PANEL):
        rows = scaled[first : first + PANEL]
        # A moment of which the diagonal alone was kept multiplies element by element.
        right = rows * inputs if inputs.dim() == 1 else rows @ inputs
        part = outputs[first : first + PANEL]
        left = part[:, None] * rows if outputs.dim() == 1 else part @ scaled
        total += float((left * right).sum(dtype=torch.float64))
    return max(0.0, 0.5 * total * one * one / energy)
