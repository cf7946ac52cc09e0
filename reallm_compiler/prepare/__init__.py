"""The whole model before any matrix: its graph, folded and rotated; names and shapes alone."""

from reallm_compiler.prepare.folding import Activation, activations_of, changed_by, fold_factors
from reallm_compiler.prepare.model import prepare_model, prepare_stages

__all__ = [
    "Activation",
    "activations_of",
    "changed_by",
    "fold_factors",
    "prepare_model",
    "prepare_stages",
]
