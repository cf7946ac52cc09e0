"""Operations of a compile, a calibration and a tuning, counted from a plan.

What coding a matrix takes is said by the size laws of its stages (`storage.work`). What runs the
model is counted in multiply-accumulates for each token: the weights of its blocks once forward,
once more back to the inputs. Attention between tokens is left out: it is small beside them in
windows of a few thousand. Of experts those count that a token is sent to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reallm_compiler.checkpoint import layer_index
from reallm_compiler.checkpoint.linear import known_role
from reallm_compiler.planning.fit import fit_blocks, fit_of
from reallm_compiler.planning.folding import Fold
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.recipe.tuning import FinetuneOptions
from reallm_compiler.storage import work as operations
from reallm_compiler.storage.matrix import group_work
from reallm_compiler.storage.work import Work, times, total
from reallm_formats import section_bytes

WINDOW = 2048
"""Tokens of a sequence where nothing else is said, if the model has as many positions."""

SAMPLES = 256
"""Sequences of a calibration (`calibrate --samples`)."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of a config under which the number of experts stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileWork:
    """What a compile does.

    Attributes:
        groups: what learns the sections of each share group.
        matrices: of each matrix its work and its group, and of factors that are folded.
        blocks: where blocks learn, of each block all of its work; they follow each other.
        copied: work on kept tensors and files.
    """

    groups: Mapping[str, Work]
    matrices: tuple[tuple[Work, str | None], ...]
    blocks: tuple[Work, ...]
    copied: Work


def compile_work(plan: Plan, config: Mapping[str, Any] | None = None) -> CompileWork:
    """The work of a compile.

    Args:
        plan: of it.
        config: of the model, for the window of a text by which blocks learn.
    """
    groups: dict[str, Work] = {}
    for name, members in plan.groups.items():
        read = sum(section_bytes(one.dtype, one.shape) for one in members)
        learning = group_work([one.layout for one in members])
        groups[name] = total([learning, {operations.BYTES: read}])
    blocks = fit_blocks(plan)
    inside = {matrix.name for block in blocks for matrix in block.matrices}
    alike: dict[int, Work] = {}

    def of(matrix: PlannedMatrix) -> Work:
        if id(matrix.layout) not in alike:
            alike[id(matrix.layout)] = _matrix_work(matrix)
        return alike[id(matrix.layout)]

    fitted = []
    for block in blocks:
        fit = fit_of(plan)
        assert fit is not None  # it has blocks
        numel = sum(matrix.numel for matrix in block.matrices)
        tokens = fit.samples * (fit.window or window_of(config))
        passes = 2 + 2 * fit.epochs if fit.learn else 2  # what it follows, its outputs, learning
        training = {operations.MODEL: passes * numel * tokens}
        fitted.append(total([training, *map(of, block.matrices)]))
    kept = sum(tensor.spec.nbytes for tensor in plan.tensors)
    return CompileWork(
        groups=groups,
        matrices=(
            *((_fold_work(fold), None) for fold in plan.folds.values()),
            *((of(one), one.plan.share) for one in plan.matrices if one.name not in inside),
        ),
        blocks=tuple(fitted),
        copied={operations.BYTES: 2 * (kept + sum(file.nbytes for file in plan.files))},
    )


def _matrix_work(matrix: PlannedMatrix) -> Work:
    """Coding, reading the weights and what was measured of them, and writing the sections."""
    moved = section_bytes(matrix.dtype, matrix.shape)
    moved += sum(spec.nbytes for spec in matrix.layout.own_sections) + statistics_bytes(matrix)
    extra = {operations.BYTES: moved, operations.MATRICES: 1}
    return total([matrix.layout.work, extra])


def _fold_work(fold: Fold) -> Work:
    """Finding factors that are folded: once where a norm keeps them, else by both who need them."""
    found = total([matrix.layout.work_of(fold.stage) for matrix in fold.matrices])
    return times(1 if fold.norm is not None else 2, found)


def statistics_bytes(matrix: PlannedMatrix) -> int:
    """Bytes of what was measured of a matrix and is read with it: two triangles on each side."""
    if not matrix.plan.needs_statistics:
        return 0
    p, q = matrix.shape
    return 4 * (p * p + q * q)


def running_weights(plan: Plan, config: Mapping[str, Any]) -> tuple[int, int]:
    """Weights that a token meets in the blocks, and in the head."""
    text = config.get("text_config") or config
    experts = next((int(text[key]) for key in EXPERTS if text.get(key)), 0)
    chosen = int(text.get("num_experts_per_tok") or experts)
    blocks = head = embedding = 0
    for name, shape in _matrices(plan):
        numel = math.prod(shape)
        role = known_role(name)
        if layer_index(name) is not None:
            routed = experts and ".experts." in f"{name}."
            blocks += numel * chosen // experts if routed else numel
        elif role == "head":
            head += numel
        elif role == "embedding":
            embedding = max(embedding, numel)
    return blocks, head or embedding


def _matrices(plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((matrix.name, matrix.shape) for matrix in plan.matrices)
    for tensor in plan.tensors:
        if len(tensor.shape) >= 2:
            yield tensor.name.removesuffix(".weight"), tensor.shape


def window_of(config: Mapping[str, Any] | None) -> int:
    """Tokens of a sequence: `WINDOW`, or the positions of the model if these are fewer."""
    text = (config or {}).get("text_config") or config or {}
    return min(
        WINDOW, int(text.get("max_position_embeddings") or text.get("n_positions") or WINDOW)
    )


def calibration_work(plan: Plan, config: Mapping[str, Any], samples: int = SAMPLES) -> Work:
    """The work of a calibration with gradients: each block twice forward and once back.

    Moments are two symmetric sums on either side of each matrix, of which half is computed;
    matrices with the same inputs are taken to be three of attention and two of an MLP.
    """
    tokens = samples * window_of(config)
    blocks, head = running_weights(plan, config)
    sides = 0
    for matrix in plan.matrices:
        if layer_index(matrix.name) is None:
            continue
        p, q = matrix.shape
        sides += p * p + (0 if _same_inputs(matrix.name) else q * q)
    read = sum(section_bytes(matrix.dtype, matrix.shape) for matrix in plan.matrices)
    return {
        operations.MODEL: tokens * (3 * blocks + 2 * head),
        operations.MOMENTS: tokens * sides,
        operations.BYTES: 2 * read + measured_bytes(plan),
        operations.PROCESSES: 1,
    }


def _same_inputs(name: str) -> bool:
    """Whether another matrix, which has its moments, has the same inputs, by usual names."""
    return name.rpartition(".")[2] in ("k_proj", "v_proj", "up_proj", "w3", "key", "value")


def measured_bytes(plan: Plan) -> int:
    """Bytes of the statistics of all matrices in blocks, about: four triangles in float32."""
    size = 0
    for matrix in plan.matrices:
        if layer_index(matrix.name) is not None:
            p, q = matrix.shape
            size += 4 * (p * p + (0 if _same_inputs(matrix.name) else q * q))
    return size


def block_work(plan: Plan, config: Mapping[str, Any], options: FinetuneOptions) -> Work:
    """The work of tuning block by block, if every block takes all of its passes.

    Targets and what is handed on are one pass each; a step is a pass forward and one back.
    """
    blocks, _ = running_weights(plan, config)
    window = options.window or window_of(config)
    train, held = options.block.sequences * window, options.held_out * window
    passes = train * (2 + 2 * options.block.epochs) + held * (3 + options.block.epochs)
    return {operations.MODEL: passes * blocks}


def end_to_end_work(plan: Plan, config: Mapping[str, Any], options: FinetuneOptions) -> Work:
    """The work of tuning end to end: a pass forward and one back, and one of the original."""
    blocks, head = running_weights(plan, config)
    window = options.window or window_of(config)
    tokens = end_to_end_steps(options) * options.e2e.batch * options.e2e.accumulation * window
    held = (options.e2e.checks + 1) * options.held_out * window
    teacher = 1 if options.e2e.loss == "distill" else 0
    passes = (2 + teacher) * tokens + (1 + teacher) * held
    return {operations.MODEL: passes * (blocks + head)}


def end_to_end_steps(options: FinetuneOptions) -> int:
    """Steps; the text is taken to have as many sequences as block by block are used."""
    if options.e2e.steps is not None:
        return options.e2e.steps
    each = options.e2e.batch * options.e2e.accumulation
    return max(1, round(options.e2e.epochs * options.block.sequences / each))


def all_of(work: CompileWork) -> dict[str, int]:
    """The sum of all work of a compile."""
    parts = [*work.groups.values(), *work.blocks, work.copied]
    counts: dict[int, tuple[Work, int]] = {}
    for one, _ in work.matrices:
        counts[id(one)] = one, counts.get(id(one), (one, 0))[1] + 1
    return total([*parts, *(times(count, one) for one, count in counts.values())])
