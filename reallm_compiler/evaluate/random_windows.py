"""The protocol `random windows`, by which the literature takes a sample of C4.

A document is drawn, each with equal chance; if it has fewer tokens than a window, another is drawn;
then an offset in it is drawn, where the window begins. So it goes on until there are as many
windows as asked for (the literature takes 256). A document, and a token, may be drawn twice. Draws
come from Python's own generator with the given seed, which is the same on every system.

Documents are the parts of the text between separators; without one the text is one document. Each
is tokenised by itself with the tokenizer's defaults. In each window the first token is context.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.text import TokenWindows, check_window, encode
from reallm_compiler.models.text import check_separator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_random(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    window: int,
    count: int,
    *,
    separator: str | None = None,
    seed: int = 0,
) -> TokenWindows:
    """Draw `count` windows from `text`.

    Args:
        tokenizer: the model's tokenizer.
        text: the text, with `separator` between its documents.
        window: tokens of each.
        count: how many.
        separator: what stands between documents; None for one document.
        seed: of the draws.

    Raises:
        EvaluationError: `window` is below 2, `count` below 1, the separator is not in the text,
            or no document has enough tokens.
    """
    check_window(window)
    if count < 1:
        raise EvaluationError(f"cannot draw {count} random windows", hint="give 1 or more")
    if separator is not None:
        check_separator([text], separator, EvaluationError)
    parts = [text] if separator is None else text.split(separator)
    documents = [part.strip() for part in parts] if separator is not None else parts
    left = {index for index, document in enumerate(documents) if document}
    encoded: dict[int, tuple[list[int], list[tuple[int, int]] | None]] = {}
    draws = random.Random(seed)
    sequences: list[tuple[int, ...]] = []
    covered = 0
    while len(sequences) < count:
        if not left:
            raise EvaluationError(
                f"no document of the text has {window} tokens",
                hint="give longer documents, or a smaller window",
            )
        index = draws.randrange(len(documents))
        if index not in left:
            continue
        if index not in encoded:
            encoded[index] = encode(tokenizer, documents[index])
        ids, offsets = encoded[index]
        if len(ids) < window:
            left.discard(index)
            continue
        start = draws.randrange(len(ids) - window + 1)
        chosen = ids[start : start + window]
        sequences.append(tuple(chosen))
        covered += _bytes(tokenizer, documents[index], chosen, offsets, start)
    return TokenWindows(
        protocol="random windows",
        window=window,
        sequences=tuple(sequences),
        nbytes=covered,
        dropped_tokens=0,
    )


def _bytes(
    tokenizer: PreTrainedTokenizerBase,
    document: str,
    chosen: list[int],
    offsets: list[tuple[int, int]] | None,
    start: int,
) -> int:
    """UTF-8 bytes that the tokens of a window stand for."""
    if offsets is None:
        text = str(tokenizer.decode(chosen, skip_special_tokens=True))
    else:
        # Special tokens have the offsets (0, 0): they stand for no text.
        spans = [span for span in offsets[start : start + len(chosen)] if span != (0, 0)]
        text = document[spans[0][0] : max(end for _, end in spans)] if spans else ""
    return len(text.encode("utf-8"))
