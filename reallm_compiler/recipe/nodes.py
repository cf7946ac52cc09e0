"""A recipe as a tree of located nodes: each value knows the file, line and column that set it.

The tree is what `document` reads, what `patch` merges and what `check` validates. Because a node
carries its location through every merge, the value of a field can always be traced to a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias

from reallm_compiler.errors import Problem

MAX_DEPTH = 32
MAX_NODES = 200_000
MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Location:
    """Where a value is written; lines and columns count from 1, and 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(kw_only=True, slots=True)
class ScalarNode:
    """A text, a number, a truth value or null."""

    value: str | int | float | bool | None
    location: Location
    path: str


@dataclass(kw_only=True, slots=True)
class ListNode:
    """A list."""

    items: tuple[Node, ...]
    location: Location
    path: str


@dataclass(kw_only=True, slots=True)
class MapNode:
    """A map from words to nodes; `key_locations` gives where each key is written."""

    fields: Mapping[str, Node]
    location: Location
    path: str
    key_locations: Mapping[str, Location] = field(default_factory=dict)

    def key_location(self, key: str) -> Location:
        """Where `key` is written; the map's own location if that is unknown."""
        return self.key_locations.get(key, self.location)


Node: TypeAlias = ScalarNode | ListNode | MapNode


def problem_at(node: Node, message: str, hint: str | None = None) -> Problem:
    """A problem with the value of a node, reported where it is written."""
    return Problem(location=str(node.location), path=node.path, message=message, hint=hint)


def join(path: str, part: str | int) -> str:
    """The path of a child: `rules` and 2 give `rules[2]`, then `set` gives `rules[2].set`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else part


def to_plain(node: Node) -> Any:  # noqa: ANN401 - plain data of any shape
    """The node as plain data, without locations."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, ListNode):
        return [to_plain(item) for item in node.items]
    return {key: to_plain(value) for key, value in node.fields.items()}


def count_nodes(node: Node) -> int:
    """Nodes of the tree, the root included."""
    if isinstance(node, ScalarNode):
        return 1
    children = node.items if isinstance(node, ListNode) else node.fields.values()
    return 1 + sum(count_nodes(child) for child in children)


def height(node: Node) -> int:
    """Levels below the node: 0 for a scalar."""
    if isinstance(node, ScalarNode):
        return 0
    children = node.items if isinstance(node, ListNode) else node.fields.values()
    return 1 + max((height(child) for child in children), default=0)


def move(node: Node, path: str) -> Node:
    """The same tree under another path; locations stay."""
    if isinstance(node, ScalarNode):
        return replace(node, path=path)
    if isinstance(node, ListNode):
        items = (move(item, join(path, index)) for index, item in enumerate(node.items))
        return replace(node, items=tuple(items), path=path)
    fields = {key: move(value, join(path, key)) for key, value in node.fields.items()}
    return replace(node, fields=fields, path=path)


def leaves(node: Node, path: str = "") -> Iterator[tuple[str, ScalarNode | ListNode]]:
    """The fields below a map, each with its path from `node`; a list is one field."""
    if isinstance(node, MapNode):
        for key, value in node.fields.items():
            yield from leaves(value, join(path, key))
    else:
        yield path, node


def find(node: Node, path: tuple[str | int, ...]) -> tuple[Node, tuple[str | int, ...]]:
    """The deepest node on the way along `path`, and the part of the path that is not there."""
    for index, part in enumerate(path):
        if isinstance(node, MapNode) and part in node.fields:
            node = node.fields[str(part)]
        elif isinstance(node, ListNode) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            return node, path[index:]
    return node, ()


def whole_number(value: float) -> int | float:
    """A number whose value is whole as an integer: 7.2e6 is 7200000."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def map_from_plain(data: Mapping[str, Any], file: str) -> MapNode:
    """A tree from a plain map that is known to be sound."""
    fields = {key: move(from_plain(value, file)[0], key) for key, value in data.items()}
    return MapNode(fields=fields, location=Location(file), path="")


def from_plain(data: Any, file: str) -> tuple[Node, list[Problem]]:  # noqa: ANN401
    """A tree from plain data, which has no lines; `file` names it in messages.

    Returns:
        The tree, and what in it cannot be part of a recipe.
    """
    problems: list[Problem] = []
    location = Location(file)
    left = MAX_NODES

    def build(value: Any, path: str, depth: int) -> Node:  # noqa: ANN401
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            if not any(problem.message.startswith("nested") for problem in problems):
                message = f"nested more than {MAX_DEPTH} deep, or more than {MAX_NODES} values"
                problems.append(Problem(location=file, path=path, message=message))
            return ScalarNode(value=None, location=location, path=path)
        if isinstance(value, str):  # most values by far
            return ScalarNode(value=value, location=location, path=path)
        if isinstance(value, list | tuple):
            items = [build(item, join(path, i), depth + 1) for i, item in enumerate(value)]
            return ListNode(items=tuple(items), location=location, path=path)
        if isinstance(value, dict | Mapping):
            fields = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    message = f"a key must be text, not `{key!r}`"
                    problems.append(Problem(location=file, path=path, message=message))
                    continue
                fields[key] = build(item, join(path, key), depth + 1)
            return MapNode(fields=fields, location=location, path=path)
        if isinstance(value, Fraction):
            value = str(value) if value.denominator != 1 else int(value)
        if isinstance(value, float):
            value = whole_number(value)
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            problems.append(Problem(location=file, path=path, message="the number is too large"))
            value = 0
        if value is not None and not isinstance(value, str | int | float | bool):
            message = f"a value of type `{type(value).__name__}` cannot be part of a recipe"
            problems.append(Problem(location=file, path=path, message=message))
            value = None
        return ScalarNode(value=value, location=location, path=path)

    return build(data, "", 0), problems
