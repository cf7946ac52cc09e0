"""What errors of matrices cost, of many matrices: looked up, or by runs of the model (`noise`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.own_text import OwnText
from reallm_compiler.checkpoint import Inventory
from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.preflight import INTERPRETER_BYTES, SMALL_NUMEL
from reallm_compiler.execute.runner import THREADS
from reallm_compiler.models.source import source_files
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import text_tokenizer, usable_positions
from reallm_compiler.models.weights import Weights
from reallm_compiler.progress import OnProgress
from reallm_compiler.runs.backends import Backend, results
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.identity import digest_of, machine_fields
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.stop import StopRequest
from reallm_compiler.runs.tasks import Task, TaskGraph
from reallm_compiler.search.noise import SHRINK, SIZE, NoiseJob, Slopes, SlopesResult
from reallm_compiler.search.sketch import BUCKETS
from reallm_compiler.system import cores, free_memory

SAMPLES = 16
"""Sequences that the model writes."""

WINDOW = 256
"""Tokens of each, at most."""

RUNS = 2
"""Runs of the model for each matrix: with noise in it, and with it smaller."""


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
) -> dict[str, Slopes]:
    """What errors of each matrix cost.

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
    report(RUNS * len(found), RUNS * len(wanted))
    if left:
        with fixed_numerics(THREADS, device), stop.at_once():
            ids = _text(inventory, seed, device)
        facts = tuple(fact for fact in inventory.matrices() if fact.name in keys)
        job = NoiseJob(inventory=inventory, facts=facts, ids=ids, seed=seed, device=device)
        graph = TaskGraph(Task(key=name, title=name) for name in left)
        backend = _backend(machines, inventory, workers, len(left), ids)
        with closing(results(backend, job, graph, {}, stop, lambda event: None)) as running:
            for result in running:
                assert isinstance(result, SlopesResult)  # such are the tasks
                found[result.task] = result.slopes
                store.put(keys[result.task], result.slopes.facts(), result.slopes.tensors())
                report(RUNS * len(found), RUNS * len(wanted))
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
        "text": [SAMPLES, WINDOW, SIZE, SHRINK, seed],
        "sketch": BUCKETS,
    }


def _known(store: Cache, keys: Mapping[str, str]) -> dict[str, Slopes]:
    """The slopes that are kept, by matrix."""
    entries = {name: store.get(key) for name, key in keys.items()}
    found = {name: Slopes.of(*entry) for name, entry in entries.items() if entry is not None}
    return {name: one for name, one in found.items() if one is not None}


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
    """Processes, each of which holds the whole model and the logits of the text in float32, and a
    sign for each logit.
    """
    numel = sum(spec.count for spec in inventory.tensors)
    vocabulary = max(spec.shape[0] for spec in inventory.tensors if len(spec.shape) == 2)
    each = 4 * numel + 5 * ids.numel() * vocabulary + INTERPRETER_BYTES
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
