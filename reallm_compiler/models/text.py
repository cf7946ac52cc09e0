"""What all that reads text shares, without torch: files, documents, the length of a window."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reallm_compiler.errors import ReallmError

LITERATURE_WINDOW = 2048
"""Tokens per window by default: the context of the paper's tables and of most of the literature."""

SEPARATOR_HINT = "without a separator the text is cut into windows of equal length"


def read_utf8(path: str | os.PathLike[str], error: type[ReallmError]) -> tuple[str, bytes]:
    """The content of a UTF-8 file, line ends as they are, and its bytes.

    Raises:
        ReallmError: of the class `error`: the file is missing, unreadable or not UTF-8.
    """
    location = str(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise error("there is no such text file", location=location) from None
    except IsADirectoryError:
        raise error(
            "the text is a folder", location=location, hint="give one UTF-8 text file"
        ) from None
    except OSError as found:
        reason = found.strerror or str(found)
        raise error(f"the text cannot be read: {reason}", location=location) from None
    try:
        return content.decode("utf-8"), content
    except UnicodeDecodeError as found:
        raise error(
            f"the text is not UTF-8: byte 0x{content[found.start]:02x} at offset {found.start}",
            location=location,
            hint="convert it to UTF-8 first",
        ) from None


def window_of(window: int | None, positions: Iterable[int | None], error: type[ReallmError]) -> int:
    """Tokens per window: as asked for, or the smaller of 2048 and the models' positions.

    Args:
        window: what was asked for.
        positions: of each model, the most tokens that it takes; None where there is no limit.
        error: class of what is raised.

    Raises:
        ReallmError: the window asked for has more tokens than a model has positions.
    """
    stated = [count for count in positions if count is not None]
    if window is None:
        return max(2, min(LITERATURE_WINDOW, *stated)) if stated else LITERATURE_WINDOW
    if stated and window > min(stated):
        raise error(
            f"a window of {window} tokens is longer than the model's {min(stated)} positions",
            hint=f"give a window of at most {min(stated)}",
        )
    return window


def check_separator(texts: Sequence[str], separator: str, error: type[ReallmError]) -> None:
    """Refuse, by an error of the class `error`, a separator that is empty or does not occur."""
    if not separator or not any(separator in text for text in texts):
        raise error(f"the separator {separator!r} does not occur in the text", hint=SEPARATOR_HINT)


def bos_token(tokenizer: Any, error: type[ReallmError]) -> int:  # noqa: ANN401 (no types)
    """The BOS token that comes before each document; an error of the class `error` without one."""
    bos = tokenizer.bos_token_id
    if bos is None:
        raise error(
            "the tokenizer has no BOS token to put before each document", hint=SEPARATOR_HINT
        )
    return int(bos)


def documents(text: str, separator: str) -> Iterator[str]:
    """The documents of a text, without white space around them; empty ones are left out."""
    return filter(None, (part.strip() for part in text.split(separator)))
