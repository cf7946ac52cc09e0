"""YAML text to a tree of located nodes. No other module of the recipe language knows PyYAML.

The parser's events are read directly, for four reasons: every key and value keeps its line and
column; a duplicate key is an error and not a silent overwrite; an alias cannot blow up (depth and
the number of nodes after expansion are limited); and plain scalars are read by `scalars`, not by
the rules of YAML 1.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    ListNode,
    Location,
    MapNode,
    Node,
    ScalarNode,
    count_nodes,
    height,
    join,
    move,
)
from reallm_compiler.recipe.scalars import read_scalar

MAX_BYTES = 1 << 24
"""A recipe that names every matrix of a large mixture of experts has some megabytes."""

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {"str": str, "int": int, "float": float, "bool": bool, "null": type(None)}
_PARSER_MESSAGES = {
    "mapping values are not allowed here": "a `:` is not allowed here; quote the text before it",
    "could not find expected ':'": "a `:` is missing after the key",
    "found character '\\t' that cannot start any token": "a tab cannot indent; use spaces",
    "found character that cannot start any token": "this character cannot start a value",
    "found unexpected end of stream": "the text ends inside a quoted value",
    "expected alphabetic or numeric": "a value that starts with `*` or `&` needs quotes",
    "expected ',' or ']'": "a `,` or `]` is missing before this",
    "expected ',' or '}'": "a `,` or `}` is missing before this",
    "expected <block end>": "this line does not fit the indentation of the lines above",
}
"""Our messages for the YAML parser's, by the beginning of the latter."""


def read_file(path: Path, label: str | None = None) -> tuple[Node, list[Problem]]:
    """The tree of a recipe file.

    Args:
        path: the file.
        label: its name in messages; by default the path as it was given.

    Raises:
        RecipeError: the file cannot be read, or is not YAML.
    """
    label = label or str(path)
    try:
        if path.is_dir():
            raise unreadable(label, "this is a folder, not a recipe file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # no more, whatever it is: it could be /dev/zero
    except FileNotFoundError:
        raise unreadable(label, "there is no such file") from None
    except OSError as error:
        raise unreadable(label, f"the file cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise unreadable(label, f"a recipe is at most {MAX_BYTES} bytes long; this file has more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        location = Location(label, before.count(b"\n") + 1, len(before) - before.rfind(b"\n"))
        raise unreadable(location, "the file is not UTF-8 text") from None
    return read_text(text, label)


def read_text(text: str, label: str) -> tuple[Node, list[Problem]]:
    """The tree of a recipe, and the problems that do not stop the reading (duplicate keys).

    Args:
        text: YAML.
        label: the name of its file in messages.

    Raises:
        RecipeError: the text is not YAML, is empty, or goes beyond a limit.
    """
    builder = _Builder(text, label)
    try:
        return builder.document(), builder.problems
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        location = Location(label, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise unreadable(
            location, f"the character {text[error.position]!r} is not allowed"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = Location(label, mark.line + 1, mark.column + 1) if mark else Location(label)
        what = error.problem or error.context or "this is not YAML"
        ours = (word for start, word in _PARSER_MESSAGES.items() if what.startswith(start))
        message = next(ours, what)
        raise unreadable(location, message, hint="check indentation, quotes and brackets") from None


def unreadable(location: Location | str, message: str, hint: str | None = None) -> RecipeError:
    """The error of a recipe that cannot be read at all."""
    return RecipeError([Problem(location=str(location), path="", message=message, hint=hint)])


class _Builder:
    """Reads parser events into nodes."""

    def __init__(self, text: str, label: str) -> None:
        self.label = label
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node | None] = {}
        self.nodes = 0
        self.text = text
        self.events: Iterator[yaml.Event] = iter(())

    def document(self) -> Node:
        # Made here and not in __init__: the loader checks characters as soon as it is made.
        self.events = iter(yaml.parse(self.text, Loader=_loader(self.text)))
        event = next(self.events)
        while isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise unreadable(self.label, "the recipe is empty", hint="start with `reallm: 1`")
        root = self.node(event, "", 0)
        next(self.events)  # the document's end
        event = next(self.events)
        if isinstance(event, yaml.DocumentStartEvent):
            raise unreadable(
                self.location(event), "a recipe is one YAML document; a second starts here"
            )
        return root

    def location(self, event: yaml.Event) -> Location:
        mark = event.start_mark
        return (
            Location(self.label, mark.line + 1, mark.column + 1) if mark else Location(self.label)
        )

    def count(self, nodes: int, event: yaml.Event, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            message = f"a recipe holds at most {MAX_NODES} values, aliases written out"
            raise unreadable(self.location(event), message)
        if depth > MAX_DEPTH:
            raise unreadable(self.location(event), f"nested more than {MAX_DEPTH} deep")

    def node(self, event: yaml.Event, path: str, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path, depth)
        self.count(1, event, depth)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = None  # known, but not complete: it cannot hold itself
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = ScalarNode(value=self.scalar(event), location=self.location(event), path=path)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event, "seq")
            items: list[Node] = []
            while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(child, join(path, len(items)), depth + 1))
            node = ListNode(items=tuple(items), location=self.location(event), path=path)
        else:
            node = self.mapping(event, path, depth)
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def alias(self, event: yaml.AliasEvent, path: str, depth: int) -> Node:
        if event.anchor not in self.anchors:
            raise unreadable(self.location(event), f"no anchor `&{event.anchor}` comes before this")
        target = self.anchors[event.anchor]
        if target is None:
            raise unreadable(self.location(event), f"`*{event.anchor}` stands inside itself")
        self.count(count_nodes(target), event, depth + height(target))
        return move(target, path)

    def mapping(self, event: yaml.Event, path: str, depth: int) -> MapNode:
        self.check_tag(event, "map")
        fields: dict[str, Node] = {}
        locations: dict[str, Location] = {}
        while not isinstance(child := next(self.events), yaml.MappingEndEvent):
            location = self.location(child)
            if not isinstance(child, yaml.ScalarEvent):
                raise unreadable(location, "a key must be a word")
            key = child.value
            self.count(1, child, depth)
            value = self.node(next(self.events), join(path, key), depth + 1)
            if key == "<<" and child.style is None:
                message = "merge keys (`<<`) are not part of the recipe language"
                hint = "use `extends`, or a rule"
                self.problem(location, path, message, hint)
            elif key in fields:
                message = f"`{key}` is written twice; first in line {locations[key].line}"
                self.problem(location, join(path, key), message)
            else:
                fields[key] = value
                locations[key] = location
        return MapNode(
            fields=fields, location=self.location(event), path=path, key_locations=locations
        )

    def problem(self, location: Location, path: str, message: str, hint: str | None = None) -> None:
        found = Problem(location=str(location), path=path, message=message, hint=hint)
        self.problems.append(found)

    def check_tag(self, event: yaml.Event, wanted: str) -> None:
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", f"{_TAG}{wanted}"):
            raise unreadable(self.location(event), f"the tag `{_short(tag)}` is not allowed")

    def scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        name = (event.tag or "").removeprefix(_TAG)
        if event.tag in (None, "!"):
            plain = event.implicit[0]
        elif event.tag.startswith(_TAG) and name in _SCALAR_TAGS:
            plain = name != "str"
        else:
            raise unreadable(self.location(event), f"the tag `{_short(event.tag)}` is not allowed")
        if not plain:
            return event.value
        try:
            value = read_scalar(event.value)
        except ValueError as error:
            raise unreadable(self.location(event), str(error)) from None
        if name in _SCALAR_TAGS and event.tag != "!":
            kind = _SCALAR_TAGS[name]
            if kind is float and type(value) is int:
                return value
            if type(value) is not kind:
                message = f"`{event.value}` does not fit the tag `!!{name}`"
                raise unreadable(self.location(event), message)
        return value


def _loader(text: str) -> Any:  # noqa: ANN401 - a class of PyYAML
    """The loader for a text: that of libyaml for JSON, where it reads what PyYAML's own reads.

    It takes a tenth of the time. At the edges of YAML (tabs, escapes of surrogates) the two differ,
    so all else is PyYAML's.
    """
    plain = text.isascii() and "\t" not in text and "\\u" not in text
    if plain and hasattr(yaml, "CSafeLoader"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return yaml.SafeLoader
        return yaml.CSafeLoader
    return yaml.SafeLoader


def _short(tag: str | None) -> str:
    return (tag or "").replace(_TAG, "!!")
