"""What an error of a matrix costs where no gradients were measured: the model is run with noise.

Gaussian noise of a known size is added to one matrix at a time, and the KL divergence from the
original is measured on a text that the model has written itself. For small errors the KL is linear
in the squared error, and a rotated matrix that is coded without statistics has errors much like
noise; so the slope is all that is wanted:  KL = slope ||E||^2 / ||W||^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.own_text import OwnText
from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.preflight import INTERPRETER_BYTES, SMALL_NUMEL
from reallm_compiler.execute.runner import THREADS
from reallm_compiler.models.joined import Location
from reallm_compiler.models.source import source_files
from reallm_compiler.models.streamed import StreamedModel
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import run, text_tokenizer, usable_positions
from reallm_compiler.models.weights import Weights
from reallm_compiler.progress import OnProgress
from reallm_compiler.runs.backends import Backend, results
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.identity import digest_of, machine_fields
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.oom import oom_to_error
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.stop import StopRequest
from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult
from reallm_compiler.system import cores, free_memory

SAMPLES = 16
"""Sequences that the model writes."""

WINDOW = 256
"""Tokens of each, at most."""

SIZE = 1 / 16
"""||E||^2 / ||W||^2 of the noise: about that of two bits a weight."""

RUN = 1 << 25
"""Logits that are computed at once, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlopeResult(TaskResult):
    """The slope of one matrix."""

    slope: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseJob:
    """All that the runs with noise have in common (`runs.job.Job`).

    Attributes:
        inventory: of the checkpoint.
        facts: the matrices.
        ids: int64 [n, t], the text.
        seed: of the noise.
        device: where the model runs.
    """

    inventory: Inventory
    facts: tuple[MatrixFact, ...]
    ids: Tensor
    seed: int
    device: torch.device

    @contextmanager
    def open(self, context: Context) -> Iterator[NoiseRunner]:
        """A runner in this process."""
        with fixed_numerics(THREADS, self.device), torch.inference_mode():
            yield NoiseRunner(self)


class NoiseRunner:
    """Runs the model with noise in one matrix (`runs.job.Runner`).

    Args:
        job: what is run.
    """

    def __init__(self, job: NoiseJob) -> None:
        self._job = job
        self._model = _Views(job.inventory, job.facts, job.device, whole=True, error=CompileError)
        vocabulary = int(self._model.model.config.get_text_config().vocab_size)
        step = max(1, RUN // (vocabulary * job.ids.shape[1]))
        self._parts = torch.split(job.ids.to(job.device), step)
        self._expected = [self._predicted(ids) for ids in self._parts]  # [b, t, v] each

    def run(self, task: Task) -> SlopeResult:
        """The slope of the matrix that the task is called by.

        Raises:
            CompileError: it is no parameter of the model, or predictions are not finite.
        """
        weight = self._model.views.get(task.key)
        if weight is None:
            raise CompileError(
                "noise cannot be added to this matrix: it is no parameter of the model as it is",
                location=task.key,
                hint="measure statistics with `reallm calibrate`, or leave it out of `allocate`",
            )
        kept = weight.clone()
        generator = torch.Generator().manual_seed(seed_for(self._job.seed, f"noise/{task.key}"))
        noise = torch.randn(kept.shape, generator=generator).to(kept.device)
        size = float(kept.square().sum(dtype=torch.float64))
        own = float(noise.square().sum(dtype=torch.float64))
        with oom_to_error(task.title):
            weight.add_(noise, alpha=math.sqrt(SIZE * size / own))
            total = 0.0
            for ids, expected in zip(self._parts, self._expected, strict=True):
                total += _divergence(expected, self._predicted(ids))
            weight.copy_(kept)
        slope = total / self._job.ids.numel() / SIZE
        if not math.isfinite(slope):
            raise CompileError(
                "with noise in this matrix the model predicts numbers that are not finite",
                location=task.key,
                hint="measure statistics with `reallm calibrate`, or leave it out of `allocate`",
            )
        return SlopeResult(task=task.key, slope=max(0.0, slope))

    def _predicted(self, ids: Tensor) -> Tensor:
        """float32 [b, t, v]: log-probabilities."""
        return run(self._model.model, ids, None, CompileError).float().log_softmax(-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    """The sum over tokens of KL(p || q) in nats, of log-probabilities [b, t, v].

    With d = log q - log p it is the sum of p (e^d - 1 - d), of which no term is negative: where q
    is hardly another one, the terms of the plain sum of -p d all but cancel, and float32 loses it.
    """
    total = 0.0
    for old, new in zip(log_p, log_q, strict=True):  # a sequence at a time
        p, difference = old.exp(), new - old
        terms = torch.where(p > 0, p * (torch.expm1(difference) - difference), 0.0)
        total += float(terms.sum(dtype=torch.float64))
    return total


class _Views(StreamedModel):
    """A model whose matrices can be changed where they lie.

    Attributes:
        views: each matrix [p, q], by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of the base
        self.views: dict[str, Tensor] = {}
        super().__init__(*args, **kwargs)

    def _filled(self, data: Tensor, inside: list[Location]) -> None:
        for one in inside:
            offset = int(data.storage_offset()) + one.offset
            self.views[one.name] = data.as_strided(one.shape, one.strides, offset)


def slopes(
    inventory: Inventory,
    wanted: Sequence[str],
    *,
    seed: int,
    machines: Machines,
    workers: int | None,
    cache: Path,
    stop: StopRequest,
    report: OnProgress,
) -> dict[str, float]:
    """KL in nats per token by the relative squared error of each matrix.

    Args:
        inventory: of the checkpoint.
        wanted: names of matrices.
        seed: of text and noise.
        machines: where the model runs.
        workers: processes, each with the whole model; chosen by size, cores and memory when None.
        cache: a folder in which slopes are looked up and kept.
        stop: whether the run was asked to stop.
        report: called with the runs that are done and those that there will be.

    Raises:
        SourceError: the model cannot be read, or predicts no text.
        CalibrateError: it cannot write a text.
        CompileError: memory is too small, or a matrix cannot be changed.
    """
    if not wanted:
        return {}
    device = machines.device
    store = Cache(cache / "slopes")
    identity = _identity(inventory, seed, device)
    keys = {name: digest_of({**identity, "matrix": name}) for name in wanted}
    found = _known(store, keys)
    left = [name for name in wanted if name not in found]
    done = len(found)
    report(done, len(wanted))
    if left:
        with fixed_numerics(THREADS, device), stop.at_once():
            ids = _text(inventory, seed, device)
        facts = tuple(fact for fact in inventory.matrices() if fact.name in keys)
        job = NoiseJob(inventory=inventory, facts=facts, ids=ids, seed=seed, device=device)
        graph = TaskGraph(Task(key=name, title=name) for name in left)
        backend = _backend(machines, inventory, workers, len(left), ids)
        with closing(results(backend, job, graph, {}, stop, lambda event: None)) as running:
            for result in running:
                assert isinstance(result, SlopeResult)  # such are the tasks
                found[result.task] = result.slope
                store.put(keys[result.task], {"slope": result.slope.hex()}, {})
                done += 1
                report(done, len(wanted))
    return {name: found[name] for name in wanted}


def _identity(inventory: Inventory, seed: int, device: torch.device) -> dict[str, Any]:
    """What decides all slopes, as plain data: each tensor is read for its digest."""
    weights = Weights(inventory)
    for spec in inventory.tensors:
        weights.read(spec.name)
    return {
        **machine_fields(device),
        "model": weights.take_digests(),
        "origins": [repr(spec.origin) for spec in inventory.tensors],
        "text": [SAMPLES, WINDOW, SIZE, seed],
    }


def _known(store: Cache, keys: Mapping[str, str]) -> dict[str, float]:
    """The slopes that are kept, by matrix."""
    found = {}
    for name, key in keys.items():
        entry = store.get(key)
        try:
            slope = math.nan if entry is None else float.fromhex(entry[0]["slope"])
        except (KeyError, ValueError):  # not one of ours
            continue
        if 0 <= slope < math.inf:
            found[name] = slope
    return found


def _text(inventory: Inventory, seed: int, device: torch.device) -> Tensor:
    """int64 [n, t]: what the model writes."""
    files = source_files(inventory, inventory.path)
    tokenizer = text_tokenizer(files)
    positions = usable_positions(meta_model(files.config, files.label))
    window = min(WINDOW, window_of(None, [positions], CompileError))
    with TemporaryDirectory(prefix="reallm-") as folder:
        text = OwnText(Path(folder, "text"), {})
        rows = text.sequences(files, tokenizer, SAMPLES, window, seed, device, lambda event: None)
    return torch.tensor(rows)


def _backend(
    machines: Machines, inventory: Inventory, asked: int | None, tasks: int, ids: Tensor
) -> Backend:
    """Processes, each of which holds the whole model in float32 and the logits of the text."""
    numel = sum(spec.count for spec in inventory.tensors)
    vocabulary = max(spec.shape[0] for spec in inventory.tensors if len(spec.shape) == 2)
    each = 4 * (numel + ids.numel() * vocabulary) + INTERPRETER_BYTES
    slots = machines.slots(each, each)
    if slots is not None:
        count = slots.count
    elif asked is None:
        free = free_memory()
        count = 1 if numel < SMALL_NUMEL else cores()
        count = count if free is None else min(count, free // each)
    else:
        count = asked
    count = max(1, min(count, asked or count, tasks))
    return machines.backend(count, memory=lambda task: each, device_bytes=each)
