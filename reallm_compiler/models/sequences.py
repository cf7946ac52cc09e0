"""Text to sequences of tokens, and drawn orders of them.

Without a separator all texts are tokenised one by one with the tokenizer's defaults, joined, and
cut into windows of equal length; the tail is dropped. With one each document stands by itself
after one BOS and is cut off at the window's length. Shorter sequences are padded on the right,
where no causal model sees padding from a real token.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.errors import ReallmError
from reallm_compiler.models.text import bos_token, check_separator, documents, read_utf8

PIECE = 1 << 20
"""Characters that are tokenised together, at most."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences of one length, padded.

    Attributes:
        ids: int64 [n, t].
        lengths: int64 [n], real tokens of each.
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def take(self, indices: Sequence[int] | Tensor) -> Sequences:
        """Some of them, in the order asked for."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Sequences(self.ids[chosen], self.lengths[chosen])

    @property
    def mask(self) -> Tensor:
        """bool [n, t], true for real tokens."""
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def predicted(self) -> int:
        """Tokens that are predicted: all but the first of each."""
        return int((self.lengths - 1).sum())


Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One path, or several."""


def as_paths(given: Paths | None) -> tuple[str | os.PathLike[str], ...]:
    """One path, several, or none as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str | os.PathLike) else tuple(given)


def read_texts(
    paths: Sequence[str | os.PathLike[str]], error: type[ReallmError]
) -> tuple[list[str], bytes]:
    """The texts of UTF-8 files, and SHA-256 over their bytes in order.

    Raises:
        ReallmError: of the class `error`: there is none, or one is missing, unreadable or not
            UTF-8.
    """
    if not paths:
        raise error("no text is given", hint="give one or more with `--text FILE`")
    digest = hashlib.sha256()
    texts = []
    for path in paths:
        text, data = read_utf8(path, error)
        digest.update(len(data).to_bytes(8, "little") + data)
        texts.append(text)
    return texts, digest.digest()


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that end where a line does: a tokenizer takes much memory for each token."""
    first = 0
    while first < len(text):
        last = len(text)
        if last - first > PIECE:
            last = text.rfind("\n", first, first + PIECE) + 1 or first + PIECE
        yield text[first:last]
        first = last


def cut(
    tokenizer: Any,  # noqa: ANN401 (transformers has no types)
    texts: Sequence[str],
    window: int,
    separator: str | None,
    error: type[ReallmError],
) -> Sequences:
    """Sequences of `window` tokens.

    Raises:
        ReallmError: of the class `error`: the texts are too short for one sequence, a separator
            does not occur, or the tokenizer has no BOS for documents.
    """
    if separator is None:
        ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
        count = len(ids) // window
        rows = [ids[at * window : (at + 1) * window] for at in range(count)]
    else:
        rows = list(_documents(tokenizer, texts, window, separator, error))
    if not rows:
        raise error(
            f"the text gives no sequence of {window} tokens",
            hint="give more text, or a smaller window",
        )
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return Sequences(padded, lengths)


def _documents(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    window: int,
    separator: str,
    error: type[ReallmError],
) -> Iterator[list[int]]:
    check_separator(texts, separator, error)
    bos = bos_token(tokenizer, error)
    for text in texts:
        for document in documents(text, separator):
            ids = list(tokenizer(document, verbose=False)["input_ids"])
            if ids[:1] != [bos]:
                ids = [bos, *ids]
            if len(ids) > 1:
                yield ids[:window]


def permutation(count: int, seed: int, *labels: object) -> Tensor:
    """A drawn order of `count` things: int64, of its own generator for each `labels`."""
    text = "/".join(str(label) for label in (seed, *labels))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))
