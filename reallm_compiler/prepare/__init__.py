"""The whole model before any matrix: its graph, folded and rotated; names and shapes alone."""

from reallm_compiler.prepare.model import prepare_model, prepare_stages

__all__ = ["prepare_model", "prepare_stages"]
