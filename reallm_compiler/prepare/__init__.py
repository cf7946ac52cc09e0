"""The whole model before any matrix: its graph, folded and rotated; names and shapes alone."""

from reallm_compiler.prepare.folding import Feed, changed_by, feeds_of, fold_factors
from reallm_compiler.prepare.model import prepare_model, prepare_stages

__all__ = ["Feed", "changed_by", "feeds_of", "fold_factors", "prepare_model", "prepare_stages"]
