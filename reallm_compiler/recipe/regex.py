"""Regular expressions whose matching cannot take forever.

A recipe may be untrusted, inside an archive too, and Python's matching tries every way: a
few words such as `(a|a)*b` take years on a name of forty letters. Refused is what makes the ways
multiply: a repetition or a choice inside a repetition, and too many of either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]  # the parser has no other name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST_REPEATS = 5
"""Repetitions of varying length in one expression, such as `.*` and `[0-9]+`."""

MOST_CHOICES = 8
"""Choices in one expression, such as `(q|k|v)` and `(_proj)?`."""

_REPEATS = frozenset({codes.MAX_REPEAT, codes.MIN_REPEAT})


def compile_pattern(text: str) -> re.Pattern[str]:
    """A compiled regular expression.

    Raises:
        ValueError: it is none, or its matching might take forever.
    """
    try:
        steps = list(_steps(parser.parse(text)))
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    repeats = sum(_varies(step) and step[1][1] > 1 for step in steps)
    choices = sum(_chooses(step) for step in steps) - repeats
    if repeats > MOST_REPEATS or choices > MOST_CHOICES:
        raise ValueError(
            f"the expression has {repeats} repetitions and {choices} choices, and could take "
            f"exponential time; {MOST_REPEATS} and {MOST_CHOICES} are allowed"
        )
    for code, value in steps:
        if code in _REPEATS and value[1] > 1 and any(map(_chooses, _steps(value[2]))):
            raise ValueError(
                "the expression has a repetition or a choice inside a repetition, and could take "
                "exponential time; write `[ab]*` for `(a|b)*`, and `.*` for `(.*)*`"
            )
    return compiled


def _steps(tree: Any) -> Iterator[Any]:  # noqa: ANN401 (the parser has no types)
    """All steps of a parsed expression, (code, value), those inside others too."""
    for step in tree:
        yield step
        for inner in _inside(step[1]):
            yield from _steps(inner)


def _inside(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Parsed expressions inside the value of a step."""
    if isinstance(value, parser.SubPattern):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)


def _varies(step: Any) -> bool:  # noqa: ANN401
    """Whether a step is a repetition whose length is not fixed."""
    code, value = step
    return bool(code in _REPEATS and value[0] != value[1])


def _chooses(step: Any) -> bool:  # noqa: ANN401
    """Whether there are several ways through a step."""
    return _varies(step) or step[0] is codes.BRANCH
