"""Text to windows of tokens, without torch.

A perplexity means nothing without its protocol, so two protocols live here, in words and code; a
third, `random windows`, has a file of its own.

windows     (the literature's, for WikiText-2 and C4) The whole text is tokenised in one call with
            the tokenizer's own defaults: a BOS is there only if the tokenizer puts one at the start
            of the text. The tokens are cut into windows of equal length that do not overlap. The
            tail, which does not fill a window, is dropped. No BOS is put before a window.
documents   (for models of short stories) The text is split at a separator. White space around a
            document is taken off and empty documents are left out. Each document is tokenised by
            itself, comes after exactly one BOS, and is cut off at the window's length.

In both, the first token of a window is context only and every other token is predicted.

The evaluated bytes are what `bits_per_byte` is taken over: the UTF-8 bytes of the text from its
start (of each document's start) to the end of the last token that is in a window. A dropped tail,
what is cut off, separators and the white space around documents do not count. A character that
the last cut splits counts whole.

Two texts are one text only when they are equal to the byte: the WikiText-2 test set of the
literature is the rows of a data set joined by blank lines, which holds more newlines than the raw
file, and its perplexity differs. What is read here is evaluated as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reallm_compiler.errors import EvaluationError
from reallm_compiler.models.text import bos_token, check_separator, documents, read_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Protocol = Literal["windows", "documents", "random windows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenWindows:
    """A text cut into what a model sees at once.

    Attributes:
        protocol: `windows`, `documents` (as the module describes them) or `random windows`.
        window: the length that was asked for, in tokens; no sequence is longer.
        sequences: token ids, at least two in each.
        nbytes: evaluated UTF-8 bytes.
        dropped_tokens: tokens of the text that are in no sequence.
    """

    protocol: Protocol
    window: int
    sequences: tuple[tuple[int, ...], ...]
    nbytes: int
    dropped_tokens: int

    @property
    def predicted(self) -> int:
        """Predicted tokens: all but the first of each sequence."""
        return sum(len(sequence) - 1 for sequence in self.sequences)


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a UTF-8 file, unchanged: line ends stay as they are.

    Raises:
        EvaluationError: the file is missing, empty, unreadable, or not UTF-8.
    """
    text, _ = read_utf8(path, EvaluationError)
    if not text:
        raise EvaluationError("the text is empty", location=str(path))
    return text


def cut_windows(tokenizer: PreTrainedTokenizerBase, text: str, window: int) -> TokenWindows:
    """Cut `text` by the protocol `windows`.

    Raises:
        EvaluationError: `window` is below 2, or the text does not fill one window.
    """
    check_window(window)
    ids, offsets = encode(tokenizer, text)
    count = len(ids) // window
    if count == 0:
        raise EvaluationError(
            f"the text is too short: it has {len(ids)} tokens, and one window needs {window}",
            hint="give a longer text"
            + (f", or a window of at most {len(ids)}" if len(ids) >= 2 else ""),
        )
    kept = count * window
    return TokenWindows(
        protocol="windows",
        window=window,
        sequences=tuple(tuple(ids[at : at + window]) for at in range(0, kept, window)),
        nbytes=_covered_bytes(tokenizer, text, ids, offsets, kept),
        dropped_tokens=len(ids) - kept,
    )


def cut_documents(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, separator: str
) -> TokenWindows:
    """Cut `text` by the protocol `documents`.

    Raises:
        EvaluationError: `window` is below 2, the separator is empty or not in the text, every
            document is empty, or the tokenizer has no BOS token.
    """
    check_window(window)
    check_separator([text], separator, EvaluationError)
    bos = bos_token(tokenizer, EvaluationError)
    sequences: list[tuple[int, ...]] = []
    covered = dropped = 0
    for document in documents(text, separator):
        ids, offsets = encode(tokenizer, document)
        if ids[:1] != [bos]:
            ids = [bos, *ids]
            offsets = None if offsets is None else [(0, 0), *offsets]
        kept = min(len(ids), window)
        dropped += len(ids) - kept
        if kept >= 2:  # a tokenizer may find nothing in a document: then BOS stands alone
            sequences.append(tuple(ids[:kept]))
            covered += _covered_bytes(tokenizer, document, ids, offsets, kept)
    if not sequences:
        raise EvaluationError("every document of the text is empty")
    return TokenWindows(
        protocol="documents",
        window=window,
        sequences=tuple(sequences),
        nbytes=covered,
        dropped_tokens=dropped,
    )


def check_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase, text: str
) -> None:
    """Refuse two tokenizers that do not mean the same by a token.

    They are the same here when their vocabularies are equal and they cut `text` into the same
    tokens; a difference that does neither touches no number.

    Raises:
        EvaluationError: the vocabularies or the tokens of `text` differ.
    """
    if tokenizer is reference:
        return
    ours, theirs = tokenizer.get_vocab(), reference.get_vocab()
    if ours != theirs:
        note = (
            f"the vocabularies have {len(ours)} and {len(theirs)} tokens"
            if len(ours) != len(theirs)
            else f"{len(dict(ours.items() - theirs.items()))} of {len(ours)} tokens differ"
        )
    elif encode(tokenizer, text)[0] != encode(reference, text)[0]:
        note = "the vocabularies are equal, but the same text gives other tokens"
    else:
        return
    raise EvaluationError(
        "the model and the reference have different tokenizers",
        note=note,
        hint="compare a model with the one it was compiled from",
    )


def check_window(window: int) -> None:
    """Refuse a window that predicts nothing."""
    if window < 2:
        raise EvaluationError(
            f"a window of {window} predicts nothing",
            note="the first token of a window is context only",
            hint="give a window of 2 or more tokens",
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]] | None]:
    """Token ids by the tokenizer's defaults, and each token's character offsets if known."""
    located = bool(tokenizer.is_fast)
    # `verbose=False` silences one warning only: that the text is longer than the model's context,
    # which is so on purpose.
    encoded = tokenizer(
        text, verbose=False, return_attention_mask=False, return_offsets_mapping=located
    )
    return list(encoded["input_ids"]), list(encoded["offset_mapping"]) if located else None


def _covered_bytes(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ids: list[int],
    offsets: list[tuple[int, int]] | None,
    kept: int,
) -> int:
    """UTF-8 bytes of `text` up to the end of its first `kept` tokens."""
    if kept == len(ids):
        covered = text
    elif offsets is not None:
        # Special tokens have the offsets (0, 0), so the furthest end is asked for, not the last.
        covered = text[: max(end for _, end in offsets[:kept])]
    else:
        covered = str(
            tokenizer.decode(
                ids[:kept], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
    return len(covered.encode("utf-8"))
