"""Measuring a model: perplexity on a text, and its distance to a reference.

`evaluate` works on a loaded model, `evaluate_files` on paths; the package is called like
`evaluate_files`. Nothing is printed here.
"""

from __future__ import annotations

from reallm_compiler.evaluate.models import (
    evaluate_files,
    load_for_evaluation,
    load_tokenizer,
)
from reallm_compiler.evaluate.perplexity import Evaluation, choose_window, evaluate
from reallm_compiler.evaluate.text import TokenWindows, check_same_tokenizer, read_text

__all__ = [
    "Evaluation",
    "TokenWindows",
    "check_same_tokenizer",
    "choose_window",
    "evaluate",
    "evaluate_files",
    "load_for_evaluation",
    "load_tokenizer",
    "read_text",
]
