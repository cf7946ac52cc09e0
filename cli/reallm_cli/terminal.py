"""Where output goes: data to stdout, everything else to stderr.

Text that comes from outside (paths, names in a file, messages of libraries) is never read as
markup, and characters that would steer a terminal are shown as escapes. Without a terminal there
is no colour and lines are not wrapped, so that tables can be piped. `NO_COLOR` takes away every
style; where the encoding is not UTF, boxes and signs are ASCII.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any, NoReturn, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from reallm_formats.errors import printable

PIPE_WIDTH = 100_000
"""Columns of an output that is not a terminal: nothing is wrapped."""

LONG = 1000
"""Maps of a list in JSON from which on each is one line."""


class _Screen(Console):
    """A rich console that leaves a closed pipe to `main`."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def _screen(stream: TextIO) -> Console:
    plain = bool(os.environ.get("NO_COLOR"))
    screen = _Screen(
        file=stream,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=None if plain else "auto",
    )
    if not screen.is_terminal:
        screen = _Screen(
            file=stream,
            markup=False,
            emoji=False,
            highlight=False,
            color_system=None,
            width=PIPE_WIDTH,
        )
    return screen


def escape(text: str, encoding: str = "utf-8") -> str:
    """`text` with what cannot or must not be shown written as escapes; line ends stay."""
    if text.isascii() and text.isprintable():
        return text
    shown = "\n".join(map(printable, text.split("\n")))
    return shown.encode(encoding, "backslashreplace").decode(encoding)


class Terminal:
    """The two streams of one run of the command line.

    Attributes:
        out: stdout, for data.
        err: stderr, for everything else.
        traceback: show the traceback of a bug.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = _screen(out if out is not None else sys.stdout)
        self.err = _screen(err if err is not None else sys.stderr)
        self.traceback = False

    def data(self, item: RenderableType = "") -> None:
        """Print a table or a line on stdout."""
        if isinstance(item, str):
            item = self.text(item)
        self.out.print(item, soft_wrap=isinstance(item, Text))

    def json(self, payload: Any) -> None:  # noqa: ANN401
        """Print one JSON document on stdout; a number that is not finite becomes null."""
        try:
            parts = _json_parts(payload)
        except (TypeError, ValueError):  # rare: a copy of all that is printed takes long
            parts = _json_parts(_finite(payload))
        # Past rich: nothing may be wrapped, cropped or coloured. ASCII, for any encoding.
        for part in parts:
            self.out.file.write(part)

    def log(self, text: str | Text = "") -> None:
        """Print a line on stderr."""
        shown = self.text(text, self.err) if isinstance(text, str) else text
        self.err.print(shown, soft_wrap=True)

    def text(self, text: str, screen: Console | None = None, style: str = "") -> Text:
        """Text from outside, made safe for a stream."""
        target = screen if screen is not None else self.out
        return Text(escape(text, target.encoding), style=style)


def _json_parts(payload: Any) -> list[str]:  # noqa: ANN401
    """A document with two spaces for each level, in pieces; each map of a long list is one line.

    A hundred thousand rows can then be looked through, and take a quarter of the time.
    """
    if not isinstance(payload, dict) or not payload:
        return [_indented(payload), "\n"]
    parts, before = [], "{\n"
    for key, value in payload.items():
        parts.append(f"{before}  {json.dumps(str(key))}: ")
        if isinstance(value, list) and len(value) > LONG and all(map(_is_named, value)):
            parts += ["[\n    ", _one_a_line(value), "\n  ]"]
        else:
            parts.append(_indented(value).replace("\n", "\n  "))
        before = ",\n"
    return [*parts, "\n}\n"]


def _is_named(value: object) -> bool:
    """Whether a value is a map whose first value is a text."""
    return isinstance(value, dict) and isinstance(next(iter(value.values()), None), str)


def _one_a_line(rows: list[dict[str, Any]]) -> str:
    """Maps of a list, each in a line; rows that differ only in a name are encoded once."""
    known: dict[tuple[object, ...], tuple[str, str]] = {}
    lines = []
    for row in rows:
        name, *others = row.values()
        # Values are compared by identity: all are alive, and most rows share theirs.
        key = (*map(id, others), *row)
        around = known.get(key)
        if around is None:
            start = f"{{{json.dumps(next(iter(row)))}: "
            text = json.dumps(row, allow_nan=False)
            around = known[key] = start, text[len(start) + len(json.dumps(name)) :]
        lines.append(json.dumps(name).join(around))
    return ",\n    ".join(lines)


def _indented(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return value
