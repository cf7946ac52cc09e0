"""The text of a calibration as sequences of tokens: drawn from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.errors import CalibrateError
from reallm_compiler.models.sequences import cut, permutation, pieces


def draw_sequences(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    window: int,
    options: CalibrateOptions,
) -> list[list[int]]:
    """Sequences of tokens of the texts, in a drawn order.

    Raises:
        CalibrateError: the text is too short, or has no separator.
    """
    if options.separator is None:
        texts = [piece for text in texts for piece in pieces(text)]
    found = cut(tokenizer, texts, window, options.separator, CalibrateError)
    order = permutation(len(found), options.seed, "samples")[: options.samples].tolist()
    return [found.ids[number, : int(found.lengths[number])].tolist() for number in order]
