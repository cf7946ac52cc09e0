"""Tied tensors: two names for one tensor, such as a head that is the token embedding.

Ties are read from the config and the names, never from the values: two tensors that happen to be
equal stay two, and the size of an archive never depends on the data. A checkpoint that ties may
still store both names; then one is planned, and the other is listed as a duplicate, so that
whoever reads the weights can make sure that the two are equal.

The tables say what transformers 5.23 does, without importing it (`tests/sources/test_ties.py`
compares them). It reads `tie_word_embeddings` from the config of the class that has the head. For
most models of text and images that is the outer config, and what `text_config` says counts for
nothing. Transformers also compares values where both names are stored, which is not done here: so
a stored tensor is left out only where the config itself, or the type of a plain language model,
says that it is a copy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.tie_tables import (
    ALWAYS_TIED,
    BIASES,
    CLASSES_WITH_A_HEAD,
    EITHER,
    HEAD_INSIDE,
    HEAD_OF_TYPE,
    HEADS,
    INNER,
    PREFIXES,
    SHARED,
    SHARING,
    TIED_UNLESS_SAID,
    WORDS,
)
from reallm_compiler.tensors import TensorSpec


def says_tied(config: Mapping[str, Any] | None) -> bool:
    """Whether a config ties the head to the token embedding, as transformers reads it."""
    if config is None:
        return False
    word = config.get("model_type")
    model_type = word if isinstance(word, str) else ""
    if model_type in ALWAYS_TIED:
        return True
    if model_type in HEAD_INSIDE:
        key, usual = HEAD_INSIDE[model_type]
        return _flag(config.get(key), usual)
    if _flag(config, model_type):
        return True
    return model_type in EITHER and _flag(config.get("text_config"), EITHER[model_type])


def _flag(part: object, model_type: str) -> bool:
    """What one level of a config says, or the default of its model type."""
    stated = part if isinstance(part, Mapping) else {}
    if isinstance(stated.get("tie_word_embeddings"), bool):
        return bool(stated["tie_word_embeddings"])
    word = stated.get("model_type")
    return (word if isinstance(word, str) else model_type) in TIED_UNLESS_SAID


def _names_copies(config: Mapping[str, Any]) -> bool:
    """Whether a stored head is a copy by what the config states, not by a default of a pair."""
    parts = [config, *(config[key] for key in INNER if isinstance(config.get(key), Mapping))]
    stated = [part.get("tie_word_embeddings") for part in parts]
    if stated[0] is True or config.get("model_type") in HEAD_INSIDE:
        return says_tied(config)
    return False not in stated and (True in stated or len(parts) == 1)


def find_ties(names: Collection[str], config: Mapping[str, Any] | None) -> dict[str, str]:
    """The ties of a checkpoint: alias to the name of the tensor that is kept.

    The kept tensor is always in the checkpoint; the alias need not be.

    Args:
        names: names of all tensors of the checkpoint.
        config: the model's config, or None: then nothing is tied.
    """
    if config is None or not says_tied(config):
        return {}
    present = set(names)
    ties = {
        alias: kept
        for alias, kept in _below(SHARING, SHARED, present)
        if alias in present or _under(alias, present)
    }
    ties |= {
        alias: kept
        for alias, kept, beside in BIASES
        if kept in present and any(name.startswith(beside) for name in present)
    }
    rows = [row for row in _below(PREFIXES, HEADS, present) if row[1] not in ties]
    stored = [row for row in rows if row[0] in present]
    if stored:
        ties.update(stored)
    elif rows and _has_a_head(config):
        usual = HEAD_OF_TYPE.get(str(config.get("model_type")))
        alias, kept = next((row for row in rows if row[0] == usual), rows[0])
        ties[alias] = kept
    elif not rows:
        ties.update(_kept_under_alias(present))
    if not _names_copies(config):
        ties = {alias: kept for alias, kept in ties.items() if alias not in present}
    return ties


def check_shapes(tensors: Iterable[TensorSpec], ties: Mapping[str, str]) -> None:
    """Refuses two tied tensors that are both stored, and cannot be one: their shapes differ.

    Raises:
        SourceError: with both shapes.
    """
    by_name = {spec.name: spec for spec in tensors}
    for alias, kept in ties.items():
        if alias in by_name and kept in by_name and by_name[alias].shape != by_name[kept].shape:
            raise SourceError(
                f"the config ties {alias} {list(by_name[alias].shape)} to {kept} "
                f"{list(by_name[kept].shape)}, which have different shapes",
                location=by_name[alias].shard or None,
                hint="set `tie_word_embeddings` to false in config.json if both are meant",
            )


def _below(
    prefixes: tuple[str, ...], rows: tuple[tuple[str, str], ...], present: set[str]
) -> Iterator[tuple[str, str]]:
    """The rows of a table below each prefix whose kept tensor the checkpoint has."""
    words = sorted(name for name in present if name.endswith(WORDS))
    for prefix in prefixes:
        for alias, kept in rows:
            found = prefix + kept if prefix + kept in present else None
            if kept.startswith("*"):
                head = prefix + alias.partition(".")[0] + "."
                if any(name.startswith(head) for name in present):
                    own = re.compile(re.escape(prefix) + r"\w+" + re.escape(WORDS))
                    found = next((name for name in words if own.fullmatch(name)), None)
            if found is not None:
                yield prefix + alias, found


def _has_a_head(config: Mapping[str, Any]) -> bool:
    """Whether the class that a config names has a head; one that names none has."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return not isinstance(first, str) or any(word in first for word in CLASSES_WITH_A_HEAD)


def _under(name: str, present: Collection[str]) -> bool:
    """Whether the checkpoint has anything in the module that `name` lies in."""
    parent = name.split(".embed_tokens")[0] + "."
    return any(other.startswith(parent) for other in present)


def _kept_under_alias(present: Collection[str]) -> dict[str, str]:
    """A tied checkpoint that stores the head alone: the embedding is then the alias."""
    found = []
    for head, embedding in HEADS:
        parent = embedding.removesuffix(".weight").rpartition(".")[0]
        if head in present and parent and any(n.startswith(f"{parent}.") for n in present):
            found.append((len(parent), embedding, head))
    if not found:
        return {}
    # The deepest module that the checkpoint has; of equals the first row, as in the table.
    best = max(found, key=lambda row: row[0])
    return {best[1]: best[2]}
