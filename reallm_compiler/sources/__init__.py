"""Checkpoints, described by their headers alone: names, types, shapes, places, ties."""

from reallm_compiler.sources.inventory import Inventory, open_source
from reallm_compiler.sources.layers import layer_index
from reallm_compiler.sources.linear import MatrixFact, matrix_kind, matrix_name, natural_key

__all__ = [
    "Inventory",
    "MatrixFact",
    "layer_index",
    "matrix_kind",
    "matrix_name",
    "natural_key",
    "open_source",
]
