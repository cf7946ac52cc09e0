"""Checkpoints, described by their headers alone: names, types, shapes, offsets, ties."""

from reallm_compiler.checkpoint.inventory import Inventory
from reallm_compiler.checkpoint.layers import layer_index
from reallm_compiler.checkpoint.linear import MatrixFact, matrix_kind, matrix_name, natural_key
from reallm_compiler.checkpoint.source import open_source

__all__ = [
    "Inventory",
    "MatrixFact",
    "layer_index",
    "matrix_kind",
    "matrix_name",
    "natural_key",
    "open_source",
]
