"""The text by which blocks learn, as an input of a compile."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import CompileError
from reallm_compiler.models.sequences import Paths, as_paths, cut, permutation, pieces, read_texts
from reallm_compiler.models.source import source_files
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import text_tokenizer, usable_positions
from reallm_compiler.planning.fit import fit_blocks, fit_of
from reallm_compiler.planning.model import Plan


@dataclass(frozen=True, slots=True)
class TextInput:
    """Sequences of a text.

    Attributes:
        digest: SHA-256 over the files.
        ids: int64 [n, t], the drawn sequences.
    """

    digest: bytes
    ids: Tensor


def check_text(plan: Plan, inventory: Inventory, given: Paths | None) -> TextInput | None:
    """The text of a compile; None for a recipe by which nothing learns.

    Raises:
        CompileError: the recipe needs a text and none is given, or the other way round; or the text
            is too short, unreadable, or not UTF-8.
        SourceError: the model has no tokenizer, or predicts no text.
    """
    fit = fit_of(plan)
    if fit is None:
        if given is None:
            return None
        raise CompileError(
            "a text is given and nothing learns by the recipe",
            hint="leave out `--text`, or add a `fit` to the recipe",
        )
    if given is None:
        raise CompileError(
            "this recipe learns by a text, and none is given",
            hint="give one or more UTF-8 files with `--text FILE`",
        )
    texts, digest = read_texts(as_paths(given), CompileError)
    files = source_files(inventory, inventory.path)
    tokenizer = text_tokenizer(files)
    empty = meta_model(files.config, files.label)
    window = window_of(fit.window, [usable_positions(empty)], CompileError)
    parts = [piece for text in texts for piece in pieces(text)]
    sequences = cut(tokenizer, parts, window, None, CompileError)
    order = permutation(len(sequences), plan.seed, "samples")[: fit.samples]
    return TextInput(digest, sequences.ids[order])


def text_bytes(plan: Plan, text: TextInput | None) -> int:
    """Memory of a worker whose blocks learn: hidden states of the whole text, and what learns.

    Three streams of hidden states in float32; of the largest block sixteen copies, as its weights,
    their gradients, and what each step makes of them.
    """
    blocks = fit_blocks(plan)
    if text is None or not blocks:
        return 0
    width = max(min(matrix.shape) for block in blocks for matrix in block.matrices)
    numel = max(sum(matrix.numel for matrix in block.matrices) for block in blocks)
    return 4 * (3 * text.ids.numel() * width + 16 * numel)
