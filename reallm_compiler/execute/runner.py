"""The tasks of a compile, start to end: read, code, write the sections, make them durable.

This runs in the compiling process or in a worker; both open the same `CompileJob`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs import from_bytes, to_bytes
from reallm_compiler.codecs.callback import TrainingCallback
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.execute.bands import CODES, BandCoder, band_rows, by_bands
from reallm_compiler.execute.coder import MatrixCoder, located
from reallm_compiler.execute.events import FellBack
from reallm_compiler.execute.fit.coder import BlockCoder, StartingPoint
from reallm_compiler.execute.fit.text import TextInput
from reallm_compiler.execute.folding import FoldedFactors
from reallm_compiler.execute.statistics import StatisticsInput
from reallm_compiler.execute.tasks import (
    copied_tensors,
    fit_key,
    fold_key,
    folded_norms,
    group_key,
    group_task,
    matrix_key,
)
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.fit import FitBlock, fit_blocks
from reallm_compiler.planning.folding import folded_inventory
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.runs.identity import digest_of
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.sink import FileSink, NullSink, Part, Sink
from reallm_compiler.runs.tasks import Task, TaskResult
from reallm_compiler.runs.training import StateFiles, TaskCallback
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import names

THREADS = 1
"""Threads of torch in one worker: fixed, because sums depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileJob:
    """All that the tasks of one compile have in common (`runs.job.Job`).

    Attributes:
        plan, inventory: what is coded.
        device: where the numerical work runs.
        states: the reserved file that is filled, and the states of trainings beside it; None for
            a trial, which stores nothing.
        statistics: measured statistics of the matrices; None if no plan needs them.
        text: by which blocks learn; None if none do.
        cache: folder of what was coded before; None for none.
    """

    plan: Plan
    inventory: Inventory
    device: torch.device
    states: StateFiles | None
    statistics: StatisticsInput | None = None
    text: TextInput | None = None
    cache: Path | None = None

    @contextmanager
    def open(self, context: Context) -> Iterator[CompileRunner]:
        """A runner in this process."""
        with (
            fixed_numerics(THREADS, self.device),
            closing(context.sink or self._sink()) as sink,
            nullcontext() if self.statistics is None else self.statistics.open() as statistics,
        ):
            yield CompileRunner(self, sink, context, statistics)

    def _sink(self) -> Sink:
        if self.states is None:
            return NullSink()
        return FileSink(self.states.partial, self.plan.layout)


class CompileRunner:
    """Does the tasks of one compile (`runs.job.Runner`).

    Args:
        job: the compile.
        sink: where sections go.
        context: where events of trainings go.
        statistics: of the matrices whose plans need them.
    """

    def __init__(
        self,
        job: CompileJob,
        sink: Sink,
        context: Context,
        statistics: StatisticsFile | None = None,
    ) -> None:
        self._job = job
        self._plan = job.plan
        self._sink = sink
        self._context = context
        self._factors = FoldedFactors(
            job.plan, Weights(job.inventory), statistics, job.device, sink, {}
        )
        self._folded = folded_inventory(job.inventory, job.plan.folds)
        self._matrix_coder = MatrixCoder(
            self._folded,
            job.plan.seed,
            job.device,
            job.plan.decoders,
            statistics,
            job.cache,
            self._factors,
        )
        self._matrices = {matrix_key(matrix.name): matrix for matrix in job.plan.matrices}
        self._groups = {group_key(group): group for group in job.plan.groups}
        blocks = fit_blocks(job.plan)
        self._blocks = {fit_key(block.number): block for block in blocks}
        self._copied = copied_tensors(job.plan, blocks)
        self._block_coder: BlockCoder | None = None
        self._weights = self._matrix_coder.weights
        self._norms = {fold_key(one.name): one for one in folded_norms(job.plan)}
        self._files = dict(job.inventory.files)
        self._fitted: dict[str, Mapping[str, torch.Tensor]] = {}

    def run(self, task: Task) -> TaskResult:
        """Do one task.

        Raises:
            SourceError: a shard cannot be read.
            CodecError: a matrix cannot be coded.
            CompileError: the disk refuses a write, or memory runs out.
        """
        self._take_digests()
        result = TaskResult(task=task.key)
        with oom_to_error(task.title):
            if task.key in self._groups:
                self._fit_group(self._groups[task.key], result)
            elif task.key in self._blocks:
                self._fit_block(self._blocks[task.key], task, result)
            elif task.key in self._norms:
                self._fold(self._norms[task.key], result)
            elif task.key in self._matrices:
                self._code(self._matrices[task.key], task, result)
            else:
                self._copy(result)
        self._sink.flush()
        result.source.update(self._take_digests())
        return result

    def _take_digests(self) -> dict[str, str]:
        """Of all that was read since the last call."""
        return {**self._factors.weights.take_digests(), **self._weights.take_digests()}

    def _copy(self, result: TaskResult) -> None:
        for file in self._plan.files:
            self._write(names.file_section(file.path), [self._files[file.path]], result)
        for tensor in self._copied:
            self._write(names.tensor_section(tensor.name), self._kept(tensor), result)

    def _fold(self, norm: PlannedTensor, result: TaskResult) -> None:
        """Find the factors of the matrices behind a norm, and store what becomes of it."""
        with located(lambda: f"the factors of {norm.name}"):
            self._factors.find(norm.name)
        self._write(names.tensor_section(norm.name), self._kept(norm), result)

    def _kept(self, tensor: PlannedTensor) -> Iterator[memoryview]:
        """The bytes of a kept tensor, by pieces: it may be far larger than any matrix."""
        for piece in self._weights.pieces(tensor.name, tensor.dtype):
            yield to_bytes(piece, replace(tensor.spec, shape=(len(piece),)))

    def _fit_group(self, group: str, result: TaskResult) -> None:
        members = self._plan.groups[group]
        callback = self._callback(group_task(self._plan, group))
        fitted = self._fitted[group] = self._matrix_coder.fit_group(group, members, callback)
        for spec in members[0].specs:
            if spec.shared:
                name = members[0].section_name(spec)
                self._write(name, [to_bytes(fitted[spec.role], spec)], result)

    def _code(self, matrix: PlannedMatrix, task: Task, result: TaskResult) -> None:
        if by_bands(matrix):
            self._code_bands(matrix, result)
            return
        encoded = self._matrix_coder.encode(
            matrix, self._matrix_coder.load(matrix), self._shared(matrix), self._callback(task)
        )
        self._store(matrix, encoded.sections, result)
        result.errors[matrix.name] = encoded.relative_error

    def _store(self, matrix: PlannedMatrix, sections: Sections, result: TaskResult) -> None:
        """Write the own sections of a matrix."""
        for spec in matrix.layout.own_sections:
            data = to_bytes(sections[spec.role], spec)
            self._write(matrix.section_name(spec), [data], result)

    def _fit_block(self, block: FitBlock, task: Task, result: TaskResult) -> None:
        """Code a block whose matrices learn together."""
        if self._block_coder is None:
            text = self._job.text
            assert text is not None  # as `check_text` has seen
            self._block_coder = BlockCoder(
                self._plan, self._folded, text.ids, self._job.device, self._read, self._factors
            )
        coded = self._block_coder.code(
            block, self._starting_point, self._gains, self._callback(task)
        )
        if coded.outcome.lost is not None:
            epoch, step = coded.outcome.lost
            self._context.emit(FellBack(name=task.title, epoch=epoch, step=step))
        for matrix in block.matrices:
            self._store(matrix, coded.sections[matrix.name], result)
        for tensor in block.norms:
            data = to_bytes(coded.norms[tensor.name], tensor.spec)
            self._write(names.tensor_section(tensor.name), [data], result)
        result.errors.update(coded.errors)

    def _read(self, name: str, spec: SectionSpec) -> torch.Tensor:
        """A section that a finished task has stored."""
        data = self._sink.read(name)
        assert data is not None  # the tasks that this one needs have written it
        return from_bytes(data, spec).to(self._job.device)

    def _starting_point(self, matrix: PlannedMatrix) -> StartingPoint:
        loaded, shared = self._matrix_coder.load(matrix), self._shared(matrix)
        encoded = self._matrix_coder.encode(matrix, loaded, shared)
        common = self._matrix_coder.common(matrix, shared)
        return StartingPoint(weight=loaded.weight, sections={**encoded.sections, **common})

    def _gains(self, tensor: PlannedTensor) -> torch.Tensor:
        return self._weights.tensor(tensor.name, tensor.dtype)

    def _code_bands(self, matrix: PlannedMatrix, result: TaskResult) -> None:
        rows = self._weights.bands(matrix.tensor, band_rows(matrix.shape[1]))
        coder = BandCoder(
            matrix,
            (band.to(self._job.device) for band in rows),
            seed_for(self._plan.seed, matrix.name),
        )
        with located(lambda: matrix.name):
            self._write(names.matrix_section(matrix.name, CODES), coder.codes(), result)
        for role, parts in coder.others.items():
            self._write(names.matrix_section(matrix.name, role), parts, result)
        result.errors[matrix.name] = coder.relative_error

    def _shared(self, matrix: PlannedMatrix) -> Mapping[str, torch.Tensor] | None:
        """What the matrix's group has in common, from this process or from the sink."""
        group = matrix.plan.share
        if group is None:
            return None
        if group not in self._fitted:
            stored = self._stored(matrix)
            if stored is None:  # a trial fits the group when it first meets it
                self._fit_group(group, TaskResult(task=group_key(group)))
            else:
                self._fitted[group] = stored
        return self._fitted[group]

    def _stored(self, matrix: PlannedMatrix) -> dict[str, torch.Tensor] | None:
        """The shared sections of a matrix as its group's task has stored them; None if nowhere."""
        found = {}
        for spec in matrix.specs:
            if spec.shared:
                data = self._sink.read(matrix.section_name(spec))
                if data is None:
                    return None
                found[spec.role] = from_bytes(data, spec).to(self._job.device)
        return found

    def _callback(self, task: Task) -> TrainingCallback:
        # A worker that does not see the output cannot see states beside it either.
        states = self._job.states if self._context.sink is None else None
        return TaskCallback(task, states, self._context, self._source)

    def _source(self) -> str:
        """A digest of the weights that the task under way has read."""
        return digest_of(self._weights.digests)

    def _write(self, name: str, parts: Iterable[Part], result: TaskResult) -> None:
        result.sections[name] = self._sink.write(name, parts).hex()
