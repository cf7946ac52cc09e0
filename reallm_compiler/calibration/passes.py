"""The passes of a calibration: each is one task over all sequences, chunk after chunk.

    stem          tokens -> hidden states before block 0
    forward:K     hidden states through block K
    tail          hidden states -> logits; labels drawn from the model's own prediction; gradients
    backward:K    block K again, with gradients at its outputs -> gradients at its inputs

Matrices of a block are measured in its backward pass, or in its forward pass if no gradients are
wanted; those after the blocks in the tail. A model whose blocks cannot be run one by one has one
task, `whole`. Between tasks hidden states and gradients are on disk, so a run that is killed goes
on with the first task that was not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.events import ChunkDone
from reallm_compiler.calibration.labels import gradient_of_logits
from reallm_compiler.calibration.moments import Job, MatrixSums
from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.recorder import Recorder, jobs
from reallm_compiler.calibration.sequences import Chunk
from reallm_compiler.calibration.spill import Spill
from reallm_compiler.models.blocks import Call, Calls, hidden_states, run_block
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.sink import Sink
from reallm_compiler.runs.stop import Interrupted
from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult
from reallm_formats import StatisticsEntry

STEM, TAIL, WHOLE = "stem", "tail", "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What is measured, and where.

    Attributes:
        rows: what is stored of each matrix.
        parts: the matrices of each block, by their rows.
        rest: the rows of matrices outside of the blocks.
        gradients: whether gradients are measured.
    """

    rows: tuple[StatisticsEntry, ...]
    parts: tuple[tuple[StatisticsEntry, ...], ...]
    rest: tuple[StatisticsEntry, ...]
    gradients: bool

    def rows_of(self, key: str) -> tuple[StatisticsEntry, ...]:
        """The rows that a task measures."""
        kind, _, number = key.partition(":")
        if kind == WHOLE:
            return self.rows
        if kind == TAIL:
            return self.rest
        if kind == ("backward" if self.gradients else "forward"):
            return self.parts[int(number)]
        return ()

    def tasks(self) -> TaskGraph:
        """All tasks, each of which needs the one before."""
        count = len(self.parts)
        keys = [STEM, *(f"forward:{k}" for k in range(count))]
        if self.gradients or self.rest:
            keys.append(TAIL)
        if self.gradients:
            keys += [f"backward:{k}" for k in reversed(range(count))]
        if not count:
            keys = [WHOLE]
        before: list[tuple[str, ...]] = [(), *((key,) for key in keys)]
        return TaskGraph(
            Task(
                key=key,
                title=_title(key),
                needs=needs,
                sections=tuple(name for row in self.rows_of(key) for name, _, _ in row.sections()),
                numel=sum(row.shape[0] * row.shape[1] for row in self.rows_of(key)),
            )
            for key, needs in zip(keys, before, strict=False)
        )

    def needed(self, done: Collection[str]) -> list[str]:
        """Files that the tasks after those of these keys need from them."""
        count = len(self.parts)
        forward = sum(key.startswith("forward:") for key in done)
        backward = sum(key.startswith("backward:") for key in done)
        if STEM not in done or backward == count:
            return []
        if not self.gradients:
            return [_hidden(forward)]
        names = [_hidden(k) for k in range(min(forward, count - backward - 1) + 1)]
        if TAIL in done:
            return [*names[: count - backward], _gradient(count - backward)]
        return [_hidden(k) for k in range(forward + 1)]


class PassRunner:
    """Does the tasks of one calibration (`runs.job.Runner`).

    Args:
        original: the model.
        calls: what it calls its blocks with; None if it is run as a whole.
        measurement: what is measured.
        chunks: the sequences.
        seed: of the labels.
        spill: where hidden states are kept.
        sink: where sections go.
        context: how the run is told of, and stopped.
        pool: threads, each of which runs one chunk at a time.
        workers: how many they are.
        device: where the work is done.
    """

    def __init__(
        self,
        original: Original,
        calls: Calls | None,
        measurement: Measurement,
        chunks: Sequence[Chunk],
        seed: int,
        spill: Spill,
        sink: Sink,
        context: Context,
        pool: Executor,
        workers: int,
        device: torch.device,
    ) -> None:
        self._original = original
        self._calls = calls
        self._measurement = measurement
        self._chunks = chunks
        self._seed = seed
        self._spill = spill
        self._sink = sink
        self._context = context
        self._keys = [task.key for task in measurement.tasks().tasks]
        self._pool = pool
        self._workers = workers
        self._device = device
        self._sums: dict[str, MatrixSums] = {}

    def run(self, task: Task) -> TaskResult:
        """Do one task.

        Raises:
            SourceError: a shard cannot be read.
            CalibrateError: the disk refuses hidden states.
            CompileError: the disk refuses a section, or memory runs out.
            Interrupted: a stop was asked for within the task.
        """
        rows = self._measurement.rows_of(task.key)
        self._sums = {row.name: MatrixSums(row, self._device) for row in rows}
        self._original.weights.take_digests()
        kind, _, number = task.key.partition(":")
        work: Callable[..., None] = getattr(self, f"_{kind}")
        with oom_to_error(task.title):
            work(task.key, *([int(number)] if number else []))
            result = TaskResult(task=task.key)
            self._store(rows, result)
        self._sink.flush()
        result.source.update(self._original.weights.take_digests())
        return result

    def _stem(self, key: str) -> None:
        self._read_kept()
        first, model = self._original.blocks[0].module, self._original.model

        def states() -> Iterator[Tensor]:
            for wave in self._waves(key):
                for _, chunk in wave:
                    yield hidden_states(model, first, chunk.ids)

        self._spill.write(_hidden(0), states())

    def _forward(self, key: str, number: int) -> None:
        if not self._measurement.gradients and number:
            self._spill.remove(_hidden(number - 1))
        with self._original.loaded(number) as module:

            def work(index: int, chunk: Chunk, call: Call, record: Recorder) -> Tensor:
                with torch.no_grad(), record.products():
                    return run_block(module, self._read(_hidden(number), index), call)

            self._spill.write(_hidden(number + 1), self._run(key, work, number))

    def _tail(self, key: str) -> None:
        self._read_kept()
        count = len(self._original.blocks)
        gradients = self._measurement.gradients
        with self._made_calls.rest() as rest:

            def work(index: int, chunk: Chunk, call: None, record: Recorder) -> Tensor:
                hidden = self._read(_hidden(count), index).requires_grad_(gradients)
                with torch.set_grad_enabled(gradients), record.products():
                    output = rest(hidden, chunk.ids)
                if not gradients:
                    return hidden
                self._backward_of(output, chunk)
                return _gradient_of(hidden)

            made = self._run(key, work)
            if gradients:
                self._spill.write(_gradient(count), made)
            else:
                _exhaust(made)

    def _backward(self, key: str, number: int) -> None:
        self._spill.remove(_hidden(number + 1))
        self._spill.remove(_gradient(number + 2))
        with self._original.loaded(number) as module:

            def work(index: int, chunk: Chunk, call: Call, record: Recorder) -> Tensor:
                hidden = self._read(_hidden(number), index).requires_grad_()
                above = self._read(_gradient(number + 1), index)
                with torch.enable_grad(), record.products():
                    output = run_block(module, hidden.clone(), call)  # it may work in place
                torch.autograd.backward(output, above)
                return _gradient_of(hidden)

            self._spill.write(_gradient(number), self._run(key, work, number))

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
        gradients = self._measurement.gradients
        for wave in self._waves(key):
            # Calls are made one after the other, since the model is changed meanwhile.
            calls = [
                None if block is None else self._made_calls.of(block, chunk.ids)
                for _, chunk in wave
            ]
            memory = self._original.memory
            records = [Recorder(memory, self._sums, gradients=gradients) for _ in wave]
            indices, chunks = [index for index, _ in wave], [chunk for _, chunk in wave]
            yield from list(self._pool.map(work, indices, chunks, calls, records))
            _exhaust(self._pool.map(_do, jobs(self._sums, records)))

    def _waves(self, key: str) -> Iterator[list[tuple[int, Chunk]]]:
        """All chunks, on the device, as many together as there are threads; with progress."""
        steps = len(self._keys) * len(self._chunks)
        before = self._keys.index(key) * len(self._chunks)
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
        return sum(chunk.ids.numel() for chunk in self._chunks)


def _gradient_of(hidden: Tensor) -> Tensor:
    assert hidden.grad is not None  # every output depends on every hidden state
    return hidden.grad


def _do(job: Job) -> None:
    job()


def _exhaust(made: Iterable[object]) -> None:
    for _ in made:
        pass


def _bytes(piece: Tensor) -> memoryview:
    return piece.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _hidden(number: int) -> str:
    return f"hidden {number}"


def _gradient(number: int) -> str:
    return f"gradient {number}"


def _title(key: str) -> str:
    kind, _, number = key.partition(":")
    return f"{kind} pass of block {number}" if number else f"{kind} of the model"
