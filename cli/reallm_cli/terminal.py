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

    @property
    def unicode(self) -> bool:
        """Whether stderr can show more than ASCII."""
        return not self.err.options.ascii_only

    def data(self, item: RenderableType = "") -> None:
        """Print a table or a line on stdout."""
        if isinstance(item, str):
            item = self.text(item)
        self.out.print(item, soft_wrap=isinstance(item, Text))

    def json(self, payload: Any) -> None:  # noqa: ANN401
        """Print one JSON document on stdout; a number that is not finite becomes null."""
        try:
            text = _json_text(payload)
        except (TypeError, ValueError):  # rare: a copy of all that is printed takes long
            text = _json_text(_finite(payload))
        # Past rich: nothing may be wrapped, cropped or coloured. ASCII, for any encoding.
        self.out.file.write(text + "\n")

    def log(self, text: str | Text = "") -> None:
        """Print a line on stderr."""
        shown = self.text(text, self.err) if isinstance(text, str) else text
        self.err.print(shown, soft_wrap=True)

    def text(self, text: str, screen: Console | None = None, style: str = "") -> Text:
        """Text from outside, made safe for a stream."""
        target = screen if screen is not None else self.out
        return Text(escape(text, target.encoding), style=style)


def _json_text(payload: Any) -> str:  # noqa: ANN401
    """A document with two spaces for each level; of a long list of maps each map is one line.

    A hundred thousand rows can then be looked through, and take a quarter of the time.
    """
    if not isinstance(payload, dict):
        return _indented(payload)
    parts = []
    for key, value in payload.items():
        if isinstance(value, list) and len(value) > LONG and isinstance(value[0], dict):
            text = f"[\n    {_one_a_line(value)}\n  ]"
        else:
            text = _indented(value).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(str(key))}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}" if parts else "{}"


def _one_a_line(rows: list[Any]) -> str:
    """Maps of a list, each in a line; written in one go where only the list itself has maps."""
    text = json.dumps(rows, allow_nan=False)[1:-1]
    if text.count('}, {"') == len(rows) - 1:  # in a string, `"` is `\\"`
        return text.replace('}, {"', '},\n    {"')
    return ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows)


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
