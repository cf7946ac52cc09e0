"""What tuning takes in memory, from shapes alone: any config, before a weight is read.

All figures are bytes at the peak of a stage. Weights, factors, gradients and Adam's moments are
exact counts; where gradients of several batches are added up, those of one stand beside the sum.
Activations are what the backward pass of a Llama-like block keeps for each token,
and at most once what passes by: the loss of a block or the gradients on their way through its MLP,
and at the end log-probabilities with their gradients. benchmarks/finetune_memory.py compares the
sums with what processes take. Another kind of block differs.

Inputs and targets of all sequences lie in host memory while a block is tuned; a batch at a time
goes to the device. Not counted: the interpreter with its libraries, the text and its tokens, and
freed memory that an allocator keeps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from reallm_compiler.checkpoint import layer_index
from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.options import FinetuneOptions, Stage
from reallm_compiler.models.text import window_of
from reallm_compiler.planning.learnable import learnable_sections
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.stored import frozen_plan
from reallm_compiler.recipe.tuning import DEFAULT_LEARN
from reallm_compiler.storage.matrix import layout_of

LIBRARIES_BYTES = 420_000_000
"""What Python with torch and transformers holds before any model, about (measured on Linux)."""

CHUNK_BYTES = 1 << 26
"""Bytes of one float32 array of the log-probabilities that are worked on at once."""

FLOAT = 4
"""Bytes of what is tuned, its gradients and its moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes by stage and by what they are for.

    Attributes:
        stages: for each stage its terms in order; they add up to the stage's `total`.
        host: bytes for inputs and targets of block-wise tuning, in host memory.
        tuned: numbers that are tuned.
        window: tokens of a sequence.
    """

    stages: Mapping[Stage, Mapping[str, int]]
    host: int
    tuned: int
    window: int

    def total(self, stage: Stage) -> int:
        """Bytes at the peak of a stage."""
        return sum(self.stages[stage].values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run, without what lies in host memory."""
        return max(self.total(stage) for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return {
            "stages": {
                stage: {**terms, "total": self.total(stage)} for stage, terms in self.stages.items()
            },
            "host_bytes": self.host,
            "tuned_parameters": self.tuned,
            "window": self.window,
            "peak_bytes": self.peak,
        }


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Extents of a model: width d, MLP f, queries and keys per token, vocabulary v."""

    width: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    layers: int
    positions: int | None


def estimate(
    plan: Plan,
    config: Mapping[str, Any],
    options: FinetuneOptions,
    sequences: int | None = None,
    *,
    packed: bool = False,
    shards: int = 1,
) -> MemoryEstimate:
    """The memory of tuning the model of a plan.

    Args:
        plan: what is coded and how, from an archive or from a recipe and a bare config.
        config: the model's config.json.
        options: settings of the run.
        sequences: how many the text gives, with those held out; as many as can be used when None.
        packed: the coded parts stay as they are stored.
        shards: processes among which the coded weights are sharded end to end; a block is whole at
            a time.

    Raises:
        FinetuneError: the window asked for has more tokens than the model has positions.
    """
    sizes = model_sizes(config)
    window = window_of(options.window, [sizes.positions], FinetuneError)
    width = 2 if options.precision == "bfloat16" else 4
    numel = sum(matrix.numel for matrix in plan.matrices)
    kept = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    frozen = {
        "coded weights": _coded_bytes(plan) if packed else numel * width,
        "kept weights": kept * width,
    }
    tuned = {matrix.name: tuned_parameters(matrix, options.learn) for matrix in plan.matrices}
    shared = 0
    for one in learnable_sections(plan).values():
        if one.group in options.learn:
            size = math.prod(one.spec.shape)
            if one.owner in tuned:
                tuned[one.owner] += size
            else:
                shared += size
    tuned[""] = shared
    if {"scales", "tables"} & set(options.learn):  # decoded in each pass, and its gradient
        largest = max((matrix.numel for matrix in plan.matrices), default=0)
        frozen["one matrix and its gradient"] = 2 * largest * FLOAT
    stages: dict[Stage, Mapping[str, int]] = {}
    host = 0
    if "block" in options.stages:
        stages["block"] = frozen | _block_terms(plan, tuned, sizes, window, width, options)
        most = options.block.sequences + options.held_out
        used = most if sequences is None else min(sequences, most)
        host = 2 * used * window * sizes.width * width
    if "e2e" in options.stages:
        held = frozen
        if shards > 1:
            held = frozen | {"coded weights": (numel // shards + _largest_block(plan)) * width}
        stages["e2e"] = held | _end_terms(plan, tuned, sizes, window, width, options)
    return MemoryEstimate(stages=stages, host=host, tuned=sum(tuned.values()), window=window)


def _coded_bytes(plan: Plan) -> int:
    """Bytes of the sections of all coded parts; each matrix counts those that its group shares."""
    layouts = (layout_of(frozen_plan(one.plan), one.shape, one.dtype) for one in plan.matrices)
    return sum(spec.nbytes for layout in layouts for spec in layout.sections)


def tuned_parameters(matrix: PlannedMatrix, learn: Collection[str] = DEFAULT_LEARN) -> int:
    """Numbers of a matrix's factors and gains that are tuned."""
    p, q = matrix.shape
    gains = "rows" in learn or ("gains" in learn and matrix.plan.dora)
    factors = matrix.layout.low_rank_parameters if "factors" in learn else 0
    return factors + gains * p + ("columns" in learn) * q


def _blocks(plan: Plan) -> list[list[PlannedMatrix]]:
    """The coded matrices of each block."""
    by_layer: dict[int, list[PlannedMatrix]] = {}
    for matrix in plan.matrices:
        layer = layer_index(matrix.name)
        if layer is not None:
            by_layer.setdefault(layer, []).append(matrix)
    return list(by_layer.values())


def _largest_block(plan: Plan) -> int:
    """Coded weights of the largest block."""
    return max((sum(m.numel for m in block) for block in _blocks(plan)), default=0)


def _block_terms(
    plan: Plan,
    tuned: Mapping[str, int],
    sizes: ModelSizes,
    window: int,
    width: int,
    options: FinetuneOptions,
) -> dict[str, int]:
    blocks = _blocks(plan)
    largest = _largest_block(plan)
    most = max((sum(tuned[m.name] for m in block) for block in blocks), default=0)
    tokens = options.block.batch * window
    return {
        "factors and gains": sum(tuned.values()) * FLOAT,
        "best so far": most * FLOAT,
        "gradients": most * FLOAT * (2 if options.block.accumulation > 1 else 1),
        "optimizer states": 2 * most * FLOAT,
        "one original block": largest * width,
        "activations": tokens * (_per_token(sizes, width) + _passing(sizes, width)),
    }


def _end_terms(
    plan: Plan,
    tuned: Mapping[str, int],
    sizes: ModelSizes,
    window: int,
    width: int,
    options: FinetuneOptions,
) -> dict[str, int]:
    count = sum(tuned.values())
    tokens = options.e2e.batch * window
    one = tokens * _per_token(sizes, width)
    teacher = 0
    if options.e2e.loss == "distill":
        teacher = width * (
            sum(matrix.numel for matrix in plan.matrices)
            + sum(math.prod(tensor.shape) for tensor in plan.tensors)
        )
    # Float32 log-probabilities, their gradient, and the gradient of the logits; distilled: both
    # models' log-probabilities, and three that the divergence makes of them. A chunk at a time.
    chunk = min(tokens * sizes.vocabulary * FLOAT, CHUNK_BYTES)
    ends = chunk * (5 if teacher else 3)
    if options.checkpointing:
        inner = sizes.layers * tokens * sizes.width * width
        again = one + tokens * _passing(sizes, width)
        if again > ends:  # a block is computed again when the logits are gone
            inner, ends = inner + again, 0
    else:
        inner = sizes.layers * one
    return {
        "factors and gains": count * FLOAT,
        "best so far": count * FLOAT,
        "gradients": count * FLOAT * (2 if options.e2e.accumulation > 1 else 1),
        "optimizer states": 2 * count * FLOAT,
        "the original": teacher,
        "activations": inner,
        "logits": ends,
    }


def _per_token(sizes: ModelSizes, width: int) -> int:
    """Bytes that the backward pass keeps for one token of one block.

    Inputs of two norms in float32 and their outputs; rotated queries and keys, values and the
    attention's output; the results of the tuned layers before their rows are rescaled; and of the
    MLP the two results, their activation and product.
    """
    norms = 2 * (FLOAT + width) * sizes.width
    attention = 2 * (sizes.queries + sizes.keys) * width
    outputs = (sizes.queries + 2 * sizes.keys + 2 * sizes.width) * width
    return norms + attention + outputs + 6 * sizes.inner * width


def _passing(sizes: ModelSizes, width: int) -> int:
    """Bytes for one token that stand beside what a block keeps when its memory is at the peak.

    Either output, target, difference and its square, in float32; or two gradients inside the MLP
    and one of its output.
    """
    return max(4 * FLOAT * sizes.width, (2 * sizes.inner + sizes.width) * width)


def model_sizes(config: Mapping[str, Any]) -> ModelSizes:
    """The extents that a model's config.json states; 0 for those that it leaves out."""
    text = config.get("text_config") or config
    width = int(text.get("hidden_size") or text.get("n_embd") or 0)
    heads = int(text.get("num_attention_heads") or text.get("n_head") or 1)
    groups = int(text.get("num_key_value_heads") or heads)
    each = int(text.get("head_dim") or width // heads)
    layers = text.get("num_hidden_layers") or text.get("n_layer") or 0
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * width
    positions = text.get("max_position_embeddings") or text.get("n_positions")
    return ModelSizes(
        width=width,
        inner=int(inner),
        queries=heads * each,
        keys=groups * each,
        vocabulary=int(text.get("vocab_size") or 0),
        layers=int(layers),
        positions=int(positions) if positions else None,
    )
