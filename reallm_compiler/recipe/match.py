"""Which names and layers a rule takes.

A pattern is a glob in which `*` also crosses dots, or, after `re:`, a regular expression that must
match the whole name. Layers are a list of integers and ranges with both ends included; a negative
number counts from the end.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from reallm_compiler.recipe.regex import compile_pattern

_SPAN = re.compile(r"(-?[0-9]{1,6})(?:-|\.\.)(-?[0-9]{1,6})")
_FROM = re.compile(r"(-?[0-9]{1,6})\.\.")
_TO = re.compile(r"\.\.(-?[0-9]{1,6})")
_ONE = re.compile(r"-?[0-9]{1,6}")
_SET = re.compile(r"\[!?\]?[^\]]*\]")
_NOT_PLAIN = re.compile(r"[()|\[{?]|\\\\|\\\.[*+]")
"""What may make a part of a regular expression optional, or a `\\.` of it no dot between words."""
_PLAIN_PART = re.compile(r"[^*?\[\\.^$+]+")
LAYERS_HINT = "write layers as `3`, `0-3`, `2..`, `-4..` or a list of these"


@dataclass(frozen=True)
class Pattern:
    """A glob, or `re:` and a regular expression.

    Raises:
        ValueError: the text is empty, no regular expression, or one that might take forever.
    """

    text: str
    _compiled: re.Pattern[str] | _Stars | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.text.removeprefix("re:"):
            raise ValueError("a pattern must not be empty")
        object.__setattr__(self, "_compiled", _compiled(self.text))

    @property
    def exact(self) -> str | None:
        """The only name that the pattern can match, if it has no wildcard."""
        return self.text if self._compiled is None else None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Parts between the dots of every name that the pattern matches.

        A search need look only at names that have them; an expression that is not plain has none.
        """
        if not self.text.startswith("re:"):
            parts = _SET.sub("?", self.text).split(".")
        elif _NOT_PLAIN.search(self.text):
            return ()
        else:
            parts = self.text[3:].split("\\.")
        return tuple(part for part in parts if _PLAIN_PART.fullmatch(part))

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the whole name."""
        return name == self.text if self._compiled is None else bool(self._compiled.fullmatch(name))


@dataclass(frozen=True, slots=True)
class _Stars:
    """A glob whose only wildcards are `*`: a thousand of them need no expression compiled.

    Attributes:
        parts: what stands before, between and after the stars.
    """

    parts: tuple[str, ...]

    def fullmatch(self, name: str) -> bool:
        """Whether the glob matches the whole name; each part is taken where it comes first."""
        first, *middle, last = self.parts
        position, end = len(first), len(name) - len(last)
        if position > end or not (name.startswith(first) and name.endswith(last)):
            return False
        for part in middle:
            found = name.find(part, position, end)
            if found < 0:
                return False
            position = found + len(part)
        return True


@lru_cache(maxsize=1 << 14)
def pattern_of(text: str) -> Pattern:
    """The pattern of a text, which is compiled once.

    Raises:
        ValueError: as `Pattern` does.
    """
    return Pattern(text)


def _compiled(text: str) -> re.Pattern[str] | _Stars | None:
    """What finds a pattern; None for a name without wildcards, which needs no search."""
    if text.startswith("re:"):
        return compile_pattern(text[3:])
    wildcards = set(text) & set("*?[")
    if wildcards == {"*"}:
        return _Stars(tuple(text.split("*")))
    return re.compile(fnmatch.translate(text)) if wildcards else None


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers from `first` to `last`, both included; None is open, negatives count from the end."""

    first: int | None
    last: int | None

    def resolve(self, count: int) -> range:
        """The layers meant in a model of `count` layers; parts outside are left out."""
        first = 0 if self.first is None else self.first
        last = count - 1 if self.last is None else self.last
        first += count if first < 0 else 0
        last += count if last < 0 else 0
        return range(max(first, 0), min(last, count - 1) + 1)

    def __str__(self) -> str:
        if self.first == self.last and self.first is not None:
            return str(self.first)
        first = "" if self.first is None else self.first
        last = "" if self.last is None else self.last
        return f"{first}..{last}"


def parse_layers(value: object) -> tuple[LayerRange, ...]:
    """Layers as a rule writes them: an integer, a text, or a list of these.

    Raises:
        ValueError: the value names no layers.
    """
    if isinstance(value, list | tuple):
        parsed = [one for item in value for one in parse_layers(item)]
    elif isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(LAYERS_HINT)
    else:
        parsed = [_parse_range(part.strip()) for part in str(value).split(",")]
    if not parsed:
        raise ValueError(LAYERS_HINT)
    return tuple(parsed)


def _parse_range(text: str) -> LayerRange:
    if _ONE.fullmatch(text):
        return LayerRange(int(text), int(text))
    if found := _SPAN.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if (first < 0) == (last < 0) and first > last:
            raise ValueError(f"`{text}` ends before it begins")
        return LayerRange(first, last)
    if found := _FROM.fullmatch(text):
        return LayerRange(int(found[1]), None)
    if found := _TO.fullmatch(text):
        return LayerRange(None, int(found[1]))
    raise ValueError(f"`{text}` is not a layer or a range of layers; {LAYERS_HINT}")
