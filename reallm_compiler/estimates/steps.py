"""The steps from a checkpoint to a tuned archive, on so many nodes: time, memory, bytes, money.

A compile is a bag of tasks, one for each matrix: they are dealt out to one worker a core, as many
as memory allows. A calibration has its chunks of tokens on all cores of one machine, or on several
a shard of the text for each process (`calibrate --shards`). Tuning runs on as many nodes as a step
has batches, all cores of each at work on one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reallm_compiler.calibration.preflight import KEPT, LIBRARIES_BYTES, RESERVE_BYTES
from reallm_compiler.checkpoint import layer_index
from reallm_compiler.errors import FinetuneError
from reallm_compiler.estimates import work as counted
from reallm_compiler.estimates.nodes import HOUR, Machine, Task, makespan
from reallm_compiler.estimates.rates import Rates
from reallm_compiler.execute.preflight import INTERPRETER_BYTES, worker_bytes
from reallm_compiler.finetune.memory import estimate, model_sizes, tuned_parameters
from reallm_compiler.finetune.options import FinetuneOptions, Stage, options_from
from reallm_compiler.planning.model import Plan
from reallm_compiler.storage import work as operations
from reallm_compiler.storage.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step on so many nodes.

    Attributes:
        name: `calibrate`, `compile`, `tune by blocks`, `tune end to end`.
        nodes: how many are rented.
        workers: how many processes work at once, or cores where one process has several.
        cpu_hours: hours of a core that work takes; None where an operation was not measured.
        hours: until it ends.
        gpu_hours: hours of a GPU in place of the cores; None where none was measured or assumed.
        memory_bytes: of a node, at the peak.
        fits: a node has as much.
        disk_bytes: read from and written to disks, of all nodes together.
        network_bytes: moved between nodes.
        dollars: rent of all cores for that time.
        gpu_dollars: rent of the GPUs in their place.
        unmeasured: operations without a rate.
    """

    name: str
    nodes: int
    workers: int
    cpu_hours: float | None
    hours: float | None
    gpu_hours: float | None
    memory_bytes: int
    fits: bool
    disk_bytes: int
    network_bytes: int
    dollars: float | None
    gpu_dollars: float | None
    unmeasured: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "unmeasured": list(self.unmeasured)}


def steps(
    plan: Plan,
    config: Mapping[str, Any] | None,
    nodes: tuple[int, ...],
    machine: Machine,
    rates: Rates,
) -> list[Step]:
    """All steps of a plan on each number of nodes.

    Args:
        plan: what is compiled.
        config: the model's config.json; without it only the compile is known.
        nodes: numbers of machines.
        machine: each of them.
        rates: of one core.
    """
    found: list[Step] = []
    if config is not None and plan.needs_statistics:
        found += [_calibrate(plan, config, count, machine, rates) for count in nodes]
    work = counted.compile_work(plan, config)
    found += [_compile(plan, work, count, machine, rates) for count in nodes]
    if config is None:
        return found
    options = options_from(None, plan.recipe)
    tuned = any(tuned_parameters(matrix, options.learn) for matrix in plan.matrices)
    for stage in options.stages if tuned else ():
        found += [_tune(plan, config, options, stage, count, machine, rates) for count in nodes]
    return found


def _compile(
    plan: Plan, work: counted.CompileWork, nodes: int, machine: Machine, rates: Rates
) -> Step:
    each = worker_bytes(plan) + INTERPRETER_BYTES
    tasks = len(work.matrices) + len(work.groups) + bool(work.blocks) + 1
    workers = min(nodes * machine.workers(each), tasks)
    whole = counted.all_of(work)
    whole[operations.PROCESSES] = workers
    seconds = rates.seconds(whole)
    wall = None
    if seconds is not None:
        wall = _compile_wall(work, workers, rates)
    statistics = sum(map(counted.statistics_bytes, plan.matrices))
    source = plan.tensor_bytes if plan.tensor_bytes is not None else 0
    sections = plan.layout.file_bytes
    return _step(
        "compile",
        nodes,
        workers,
        seconds,
        wall,
        machine,
        memory=-(-workers // nodes) * each,
        disk=source + statistics + sections,
        # Sources and statistics are read where they are needed; sections go to the writer.
        network=(source + statistics + sections) * (nodes - 1) // nodes,
        missing=rates.missing(whole),
    )


def _compile_wall(work: counted.CompileWork, workers: int, rates: Rates) -> float:
    known: dict[int, float] = {}

    def seconds(one: Work) -> float:
        if id(one) not in known:
            known[id(one)] = rates.seconds(one) or 0.0
        return known[id(one)]

    tasks = [Task(seconds(one), key=name) for name, one in work.groups.items()]
    tasks += [Task(seconds(one), after=group) for one, group in work.matrices]
    tasks.append(Task(seconds(work.copied)))
    if work.blocks:  # one after the other
        tasks.append(Task(sum(map(seconds, work.blocks))))
    start = rates.seconds({operations.PROCESSES: 1}) or 0.0
    return start + makespan(tasks, workers)


def _calibrate(
    plan: Plan, config: Mapping[str, Any], nodes: int, machine: Machine, rates: Rates
) -> Step:
    work = counted.calibration_work(plan, config)
    window = counted.window_of(config)
    shared, each = _calibration_bytes(plan, window)
    workers = max(1, min(machine.cores, (machine.memory - shared) // each))
    memory, moved, network = shared + workers * each, work[operations.BYTES], 0
    if nodes > 1:  # a process of one core for each shard, with a block and its sums in float64
        workers = min(nodes * machine.workers(shared + each), counted.SAMPLES)
        memory = -(-workers // nodes) * (shared + each)
        moved *= workers
        network = workers * 2 * counted.measured_bytes(plan) * (nodes - 1) // nodes
        work = {**work, operations.BYTES: moved, operations.PROCESSES: workers}
    seconds = rates.seconds(work)
    # Hidden states before every block are written, read, and their gradients too.
    states = 4 * 4 * counted.SAMPLES * window * model_sizes(config).width * (_layers(plan) + 1)
    return _step(
        "calibrate",
        nodes,
        workers,
        seconds,
        None if seconds is None else seconds / workers,
        machine,
        flops=2 * sum(work.get(name, 0) for name in (operations.MODEL, operations.MOMENTS)),
        memory=memory,
        disk=moved + states,
        network=network,
        missing=rates.missing(work),
    )


def _calibration_bytes(plan: Plan, window: int) -> tuple[int, int]:
    """Memory of a calibration, and what each worker takes more, as its own preflight counts."""
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for matrix in plan.matrices:
        layer = layer_index(matrix.name)
        if layer is not None:
            by_layer.setdefault(layer, []).append(matrix.shape)
    blocks = list(by_layer.values())
    weights = max((sum(p * q for p, q in block) for block in blocks), default=0)
    sums = max((sum(2 * 8 * (p * p + q * q) for p, q in block) for block in blocks), default=0)
    widths = max((sum(p + q for p, q in block) for block in blocks), default=0)
    kept = sum(tensor.spec.nbytes for tensor in plan.tensors)
    each = 4 * window * KEPT * widths
    return LIBRARIES_BYTES + RESERVE_BYTES + kept + 2 * 4 * weights + sums, max(1, each)


def _tune(
    plan: Plan,
    config: Mapping[str, Any],
    options: FinetuneOptions,
    stage: Stage,
    nodes: int,
    machine: Machine,
    rates: Rates,
) -> Step:
    end = stage == "e2e"
    make = counted.end_to_end_work if end else counted.block_work
    work = make(plan, config, options)
    pieces = options.e2e.accumulation if end else options.block.accumulation
    used = min(nodes, pieces)
    seconds = rates.seconds(work)
    try:
        memory = estimate(plan, config, options)
    except FinetuneError:
        memory = None
    network = 0
    if memory is not None and end and used > 1:
        # Each batch's sum of gradients is handed on, and the last one goes to all.
        steps_made = counted.end_to_end_steps(options)
        network = steps_made * 4 * memory.tuned * (pieces - 1 + used - 1)
    held = 0 if memory is None else memory.total(stage) + (0 if end else memory.host)
    read = plan.layout.file_bytes + (0 if end else plan.tensor_bytes or 0)
    return _step(
        "tune end to end" if end else "tune by blocks",
        nodes,
        used * machine.cores,
        seconds,
        None if seconds is None else seconds / (used * machine.cores),
        machine,
        used=used,
        flops=2 * work[operations.MODEL],
        memory=held,
        disk=used * read,
        network=network,
        missing=rates.missing(work),
    )


def _step(
    name: str,
    nodes: int,
    workers: int,
    seconds: float | None,
    wall: float | None,
    machine: Machine,
    *,
    memory: int,
    disk: int,
    network: int = 0,
    used: int | None = None,
    flops: int | None = None,
    missing: set[str],
) -> Step:
    """A step; `flops` where its work is what runs a model, which a GPU may do."""
    gpu = None
    if flops is not None and machine.gpu_flops is not None:
        gpu = flops / machine.gpu_flops / HOUR
    return Step(
        name=name,
        nodes=nodes,
        workers=workers,
        cpu_hours=None if seconds is None else seconds / HOUR,
        hours=None if wall is None else wall / HOUR,
        gpu_hours=gpu,
        memory_bytes=memory,
        fits=memory <= machine.memory,
        disk_bytes=disk,
        network_bytes=network,
        dollars=None if wall is None else machine.rent(used or nodes, wall),
        gpu_dollars=None if gpu is None else gpu * machine.gpu_price,
        unmeasured=tuple(sorted(missing)),
    )


def _layers(plan: Plan) -> int:
    return len({layer_index(matrix.name) for matrix in plan.matrices} - {None})
