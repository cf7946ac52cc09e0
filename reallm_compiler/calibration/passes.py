"""The passes of a calibration: each is one task over all sequences, chunk after chunk.

Between passes hidden states and gradients are on disk, so a run that is killed goes on with the
first pass that was not finished. `schedule` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.events import ChunkDone
from reallm_compiler.calibration.labels import gradient_of_logits
from reallm_compiler.calibration.moments import Job, MatrixSums
from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.recorder import Recorder, jobs
from reallm_compiler.calibration.schedule import (
    AGAIN,
    BACKWARD,
    FORWARD,
    STEM,
    TAIL,
    WHOLE,
    Measurement,
    gradient,
    hidden,
)
from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.calibration.shards import SUM, Shard, ShardedSchedule, split_key, sums_file
from reallm_compiler.calibration.spill import Spill
from reallm_compiler.calibration.sums import add_sums, save_sums
from reallm_compiler.models.blocks import Call, Calls, hidden_states, run_block
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.sink import Sink
from reallm_compiler.runs.stop import Interrupted
from reallm_compiler.runs.tasks import Task, TaskResult
from reallm_compiler.runs.training import StateFiles
from reallm_formats import StatisticsEntry


class PassRunner:
    """Does the tasks of one calibration (`runs.job.Runner`).

    Args:
        original: the model.
        calls: what it calls its blocks with; None if it is run as a whole.
        measurement: what is measured.
        schedule: its passes.
        shards: the sequences, and where their hidden states are kept.
        states: names the files of sums over a shard.
        seed: of the labels.
        sink: where sections go.
        context: how the run reports its progress, and is stopped.
        pool: threads, each of which runs one chunk at a time.
        workers: how many they are.
        device: where the work is done.
    """

    def __init__(
        self,
        *,
        original: Original,
        calls: Calls | None,
        measurement: Measurement,
        schedule: ShardedSchedule,
        shards: Sequence[Shard],
        states: StateFiles,
        seed: int,
        sink: Sink,
        context: Context,
        pool: Executor,
        workers: int,
        device: torch.device,
    ) -> None:
        self._original = original
        self._calls = calls
        self._measurement = measurement
        self._shards = shards
        self._shard = shards[0]
        self._states = states
        self._seed = seed
        self._sink = sink
        self._context = context
        self._schedule = schedule
        self._keys = [one.key for one in schedule.of_shard.passes]
        self._pool = pool
        self._workers = workers
        self._device = device
        self._sums: dict[str, MatrixSums] = {}
        self._passes = {STEM: self._stem, TAIL: self._tail, WHOLE: self._whole}
        self._block_passes = {
            FORWARD: self._forward,
            AGAIN: self._forward,
            BACKWARD: self._backward,
        }

    def run(self, task: Task) -> TaskResult:
        """Do one task.

        Raises:
            SourceError: a shard cannot be read.
            CalibrateError: the disk refuses hidden states.
            CompileError: the disk refuses a section, or memory runs out.
            Interrupted: a stop was asked for within the task.
        """
        self._original.weights.take_digests()
        result = TaskResult(task=task.key)
        with oom_to_error(task.title):
            if task.key.startswith(SUM):
                self._add_up(task.key, result)
            else:
                self._pass(task.key, result)
        self._sink.flush()
        result.source.update(self._original.weights.take_digests())
        return result

    def _pass(self, task: str, result: TaskResult) -> None:
        """Make a pass over a shard."""
        key, number = split_key(task)
        schedule, self._shard = self._schedule.of_shard, self._shards[number]
        for name in schedule.files() - schedule.live(key):
            self._spill.remove(name)
        rows = self._measurement.rows_of(key)
        self._sums = {row.name: MatrixSums(row, self._device) for row in rows}
        kind, _, block = key.partition(":")
        if block:
            self._block_passes[kind](key, int(block))
        else:
            self._passes[kind](key)
        if not self._schedule.sharded:
            self._store(rows, result)
        elif rows:
            save_sums(self._states.path(sums_file(task)), self._sums)

    def _add_up(self, task: str, result: TaskResult) -> None:
        """Add up the sums of all shards, in order, and store them."""
        rows = self._measurement.rows_of(task.removeprefix(SUM))
        self._sums = {row.name: MatrixSums(row, self._device) for row in rows}
        for part in self._schedule.parts_of(task):
            add_sums(self._states.path(sums_file(part)), self._sums)
        self._store(rows, result)

    @property
    def _chunks(self) -> Sequence[Chunk]:
        return self._shard.chunks

    @property
    def _spill(self) -> Spill:
        return self._shard.spill

    def _stem(self, key: str) -> None:
        self._read_kept()
        first, model = self._original.blocks[0].module, self._original.model

        def states() -> Iterator[Tensor]:
            for group in self._groups(key):
                for _, chunk in group:  # one after the other: the model is left in the middle
                    record = self._recorder()
                    with record.products():
                        made = hidden_states(model, first, chunk.ids)
                    _exhaust(self._pool.map(_do, jobs(self._sums, [record])))
                    yield made

        self._spill.write(hidden(0), states())

    def _forward(self, key: str, number: int) -> None:
        with self._original.loaded(number) as module:

            def work(index: int, chunk: Chunk, call: Call, record: Recorder) -> Tensor:
                with torch.no_grad(), record.products():
                    return run_block(module, self._read(hidden(number), index), call)

            self._spill.write(hidden(number + 1), self._run(key, work, number))

    def _tail(self, key: str) -> None:
        self._read_kept()
        count = len(self._original.blocks)
        gradients = self._measurement.gradients
        with self._made_calls.rest() as rest:

            def work(index: int, chunk: Chunk, call: None, record: Recorder) -> Tensor:
                states = self._read(hidden(count), index).requires_grad_(gradients)
                with torch.set_grad_enabled(gradients), record.products():
                    output = rest(states, chunk.ids)
                if not gradients:
                    return states
                self._backward_of(output, chunk)
                return _gradient_of(states)

            made = self._run(key, work)
            if gradients:
                self._spill.write(gradient(count), made)
            else:
                _exhaust(made)

    def _backward(self, key: str, number: int) -> None:
        with self._original.loaded(number) as module:

            def work(index: int, chunk: Chunk, call: Call, record: Recorder) -> Tensor:
                states = self._read(hidden(number), index).requires_grad_()
                above = self._read(gradient(number + 1), index)
                with torch.enable_grad(), record.products():
                    output = run_block(module, states.clone(), call)  # it may work in place
                torch.autograd.backward(output, above)
                return _gradient_of(states)

            self._spill.write(gradient(number), self._run(key, work, number))

    def _whole(self, key: str) -> None:
        self._read_kept()
        gradients = self._measurement.gradients

        def work(index: int, chunk: Chunk, call: None, record: Recorder) -> Tensor:
            with torch.set_grad_enabled(gradients), record.products():
                output = self._original.model(input_ids=chunk.ids, use_cache=False)
            if gradients:
                self._backward_of(output, chunk)
            return chunk.ids

        _exhaust(self._run(key, work))

    def _run(
        self, key: str, work: Callable[..., Tensor], block: int | None = None
    ) -> Iterator[Tensor]:
        """What `work` makes of each chunk, in order; what it records is summed on the way.

        Args:
            key: the task's.
            work: called with the index of a chunk, the chunk, the block's call and a recorder.
            block: whose calls are wanted; None for what is no block.
        """
        for group in self._groups(key):
            # Calls are made one after the other, since the model is changed meanwhile.
            calls = [
                None if block is None else self._made_calls.of(block, chunk.ids)
                for _, chunk in group
            ]
            records = [self._recorder() for _ in group]
            indices, chunks = [index for index, _ in group], [chunk for _, chunk in group]
            yield from list(self._pool.map(work, indices, chunks, calls, records))
            _exhaust(self._pool.map(_do, jobs(self._sums, records)))

    def _recorder(self) -> Recorder:
        gradients = self._measurement.gradients
        return Recorder(self._original.memory, self._sums, gradients=gradients)

    def _groups(self, key: str) -> Iterator[list[tuple[int, Chunk]]]:
        """All chunks, on the device, as many together as there are threads; with progress."""
        whole = sum(len(shard.chunks) for shard in self._shards)
        steps = len(self._keys) * whole
        before = self._keys.index(key) * whole + self._shard.before
        for first in range(0, len(self._chunks), self._workers):
            if self._context.stop_requested():
                raise Interrupted(
                    "stopped: the finished blocks are kept",
                    hint="run the same command again to resume where it stopped",
                )
            taken = self._chunks[first : first + self._workers]
            yield [(first + index, chunk.to(self._device)) for index, chunk in enumerate(taken)]
            for index in range(len(taken)):
                self._context.emit(ChunkDone(steps_done=before + first + index + 1, steps=steps))

    def _backward_of(self, output: Any, chunk: Chunk) -> None:  # noqa: ANN401
        """Gradients of the loss of labels that are drawn from a model's output."""
        logits = output.logits
        if logits.requires_grad:
            torch.autograd.backward(logits, gradient_of_logits(logits, chunk, self._seed))

    @property
    def _made_calls(self) -> Calls:
        assert self._calls is not None  # there are blocks
        return self._calls

    def _read(self, name: str, index: int) -> Tensor:
        return self._spill.read(name, index).to(self._device)

    def _read_kept(self) -> None:
        """Take the digests of the tensors outside of the blocks, which stay in memory."""
        for tensor in self._original.kept_tensors():
            self._original.weights.read(tensor)

    def _store(self, rows: Iterable[StatisticsEntry], result: TaskResult) -> None:
        for row in rows:
            sums = self._sums.pop(row.name)
            for (role, _, _), (name, _, _) in zip(row.parts(), row.sections(), strict=True):
                pieces = (_bytes(piece) for piece in sums.parts(role, self._tokens))
                result.sections[name] = self._sink.write(name, pieces).hex()

    @property
    def _tokens(self) -> int:
        return sum(chunk.ids.numel() for shard in self._shards for chunk in shard.chunks)


def _gradient_of(states: Tensor) -> Tensor:
    assert states.grad is not None  # every output depends on every hidden state
    return states.grad


def _do(job: Job) -> None:
    job()


def _exhaust(made: Iterable[object]) -> None:
    for _ in made:
        pass


def _bytes(piece: Tensor) -> memoryview:
    return piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
