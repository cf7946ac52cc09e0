"""Remarks on a checkpoint: where its config and its tensors differ, and what is kept though large.

None of this stops a compile, which needs no config. But whoever loads the model, or wonders about
its size, should have been warned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reallm_compiler.checkpoint.linear import MatrixFact, known_role
from reallm_compiler.tensors import TensorSpec

LARGE = 100
"""Tensors are large that take more than one in this many bytes of the weights."""
_TOKENS = re.compile(
    r"embed_tokens|tok_embeddings|wte|word_embeddings?|embed_in|tokens_embed|lm_head|embed_out"
)
_POSITIONS = re.compile(r"wpe|position_embeddings?|embed_positions|positions_embed|pos_embed")
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
_ADDED_ROWS = {"mllama": 8}
"""Rows that a model type adds to the vocabulary that its config states."""
_DIGITS = re.compile(r"\d+")


def remarks(
    tensors: Sequence[TensorSpec],
    facts: Sequence[MatrixFact],
    config: Mapping[str, Any] | None,
) -> tuple[str, ...]:
    """All remarks, each a sentence.

    Args:
        tensors: the checkpoint's.
        facts: its matrices.
        config: the model's config, or None.
    """
    notes = [] if config is None else [*_vocabulary(tensors, config), *_positions(tensors, config)]
    return (*notes, *_large(tensors, facts))


def _vocabulary(tensors: Sequence[TensorSpec], config: Mapping[str, Any]) -> Iterator[str]:
    """Tables of tokens with other rows than the config states, and padding outside of them."""
    stated = {value for key, value in _numbers(config) if "vocab" in key}
    if not stated:
        return
    added = _ADDED_ROWS.get(str(config.get("model_type")), 0)
    known = stated | {size + added for size in stated}
    rows = {spec.name: spec.shape[0] for spec in tensors if _is_table(spec, _TOKENS)}
    for name, count in rows.items():
        if count not in known:
            yield (
                f"{name} has {count:,} rows, and config.json says vocab_size "
                f"{', '.join(map(str, sorted(stated)))}: transformers does not load such a "
                "checkpoint; correct the config"
            )
    most = max(known | set(rows.values()))
    for key, value in _numbers(config):
        if key == "pad_token_id" and not -most <= value < most:
            yield (
                f"pad_token_id {value} of config.json is outside the vocabulary of {most:,}: "
                "transformers does not load such a checkpoint; correct the config"
            )


def _positions(tensors: Sequence[TensorSpec], config: Mapping[str, Any]) -> Iterator[str]:
    """Tables of positions that are shorter than the config states."""
    stated = [config[key] for key in _POSITION_KEYS if type(config.get(key)) is int]
    for spec in tensors:
        if stated and _is_table(spec, _POSITIONS) and spec.shape[0] < stated[0]:
            yield (
                f"{spec.name} has {spec.shape[0]:,} rows, fewer than the {stated[0]:,} positions "
                "of config.json: transformers does not load such a checkpoint; correct the config"
            )


def _large(tensors: Sequence[TensorSpec], facts: Sequence[MatrixFact]) -> Iterator[str]:
    """Large tensors that are kept because no rule knows what they are."""
    decided = {fact.tensor for fact in facts if fact.role not in ("other", "vector")}
    sizes: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    total = 0
    for spec in tensors:
        total += spec.stored_bytes
        if spec.name not in decided and len(spec.shape) > 1 and not known_role(spec.name):
            kind = _DIGITS.sub("*", spec.name)
            sizes[kind] += spec.stored_bytes
            parts[kind] += 1
    large = [(kind, size) for kind, size in sizes.most_common() if size * LARGE > total]
    if large:
        share = sum(size for _, size in large) / total
        named = ", ".join(f"{kind} ({parts[kind]:,})" for kind, _ in large[:4])
        yield (
            f"{share:.0%} of the weights are kept as they are, because no rule knows these "
            f"tensors as a linear layer's: {named}{', ...' if len(large) > 4 else ''}"
        )


def _is_table(spec: TensorSpec, pattern: re.Pattern[str]) -> bool:
    module = spec.name.removesuffix(".weight").rpartition(".")[2]
    return len(spec.shape) == 2 and pattern.fullmatch(module) is not None


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(key, number) of the integers of a config and of the configs inside it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif type(value) is int:
            yield str(key), value
