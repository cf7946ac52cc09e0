"""The inventory of a checkpoint: everything a plan needs to know, and no weight read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reallm_compiler.checkpoint.layers import model_layer
from reallm_compiler.checkpoint.linear import MatrixFact
from reallm_compiler.tensors import TensorSpec

Kind = Literal["model", "matrices", "headers", "config", "shapes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """A checkpoint as its headers describe it.

    Attributes:
        path: the folder of the shards; for a bare config or shapes the file, or empty.
        kind: `model` (weights and config), `matrices` (weights alone), `headers` (of weights that
            are elsewhere), `config` or `shapes` (no weights).
        tensors: what will be stored, sorted by name, numbers in names by value; of tied tensors
            only the kept one; scales of fp8 weights only inside the weight's own entry.
        config: the model's config, without what says how the checkpoint stores the weights
            (`quantization.without_storage`).
        files: the small files to embed, as (relative path, content).
        ties: alias to kept tensor; the alias is not in `tensors`.
        duplicates: tied aliases that the checkpoint stores all the same. A plan holds the kept
            tensor alone, so whoever reads the weights should check that both are equal.
        prediction: layers for multi-token prediction, numbered on after the model's own, as
            prefixes of names.
        notes: remarks for the user, in English.
        facts: of every matrix that can be coded; see `matrices`.
        original: what the checkpoint holds, where this is the inventory of a prepared model.
    """

    path: str
    kind: Kind
    tensors: tuple[TensorSpec, ...]
    config: dict[str, Any] | None = None
    files: tuple[tuple[str, bytes], ...] = ()
    ties: dict[str, str] = field(default_factory=dict)
    duplicates: tuple[TensorSpec, ...] = ()
    prediction: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    facts: tuple[MatrixFact, ...] = field(repr=False, default=())
    original: Inventory | None = field(repr=False, default=None)

    def __repr__(self) -> str:
        return f"Inventory({self.path!r}, {self.kind}, {len(self.tensors)} tensors)"

    @property
    def complete(self) -> bool:
        """Whether the weights are there, and not their shapes alone."""
        return self.kind in ("model", "matrices")

    @property
    def layers(self) -> int:
        """Number of the model's layers, one above the highest number; 0 without layers."""
        return max((fact.layer + 1 for fact in self.facts if fact.layer is not None), default=0)

    def matrices(self) -> tuple[MatrixFact, ...]:
        """Every matrix that can be coded, in the order of `tensors`; see `linear.py`."""
        return self.facts

    def others(self) -> tuple[TensorSpec, ...]:
        """The tensors that are no matrices: they can only be kept."""
        coded = {fact.tensor for fact in self.facts}
        return tuple(tensor for tensor in self.tensors if tensor.name not in coded)

    def layer_of(self, name: str) -> int | None:
        """Number of the model's layer that a tensor or a matrix belongs to, or None."""
        return model_layer(name, self.prediction)
