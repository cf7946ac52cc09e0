"""From a failed validation to problems that a user can act on.

pydantic finds what is wrong; the messages are ours. Each of its errors becomes a `Problem` with
the location of the wrong node, the path in the document, a message without jargon and, where one is
near, the valid name. The alternatives of a union fail one by one; here they are one problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.nodes import ListNode, MapNode, Node, ScalarNode, find, join, problem_at
from reallm_compiler.recipe.scalars import read_scalar
from reallm_compiler.recipe.vocabulary import listed, nearest

Loc = tuple[str | int, ...]
UnknownKey = Callable[[Loc, str, MapNode], tuple[str, str | None]]
"""Message and hint for an unknown key: its map's path below the root, the key, the map."""

_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "is_instance_of": "a fraction such as 1/64",
    "bool_type": "`true` or `false`",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
}
_LIMITS = {
    "greater_than_equal": ("ge", "is too small: at least"),
    "greater_than": ("gt", "is too small: above"),
    "less_than_equal": ("le", "is too large: at most"),
    "less_than": ("lt", "is too large: below"),
}
_EMPTY = ("string_too_short", "too_short")


def problems_of(error: ValidationError, root: Node, unknown_key: UnknownKey) -> list[Problem]:
    """The problems behind a failed validation of `root`, one for each location.

    Args:
        error: what pydantic found.
        root: the tree that was validated as plain data.
        unknown_key: message and hint for a key that is not allowed there.
    """
    problems: list[Problem] = []
    missing: list[Loc] = []
    shapes: dict[str, tuple[Node, list[dict[str, Any]]]] = {}
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        kind = detail["type"]
        if kind == "extra_forbidden":
            problems.append(_extra(root, loc, unknown_key))
        elif kind == "missing":
            missing.append(loc)
        elif kind in _WANTED or kind == "literal_error":
            node, _ = find_known(root, loc)
            shapes.setdefault(node.path, (node, []))[1].append(dict(detail))
        else:
            node, _ = find_known(root, loc)
            if kind == "union_tag_invalid":
                node = _field(node, "kind")
            message, hint = _message(dict(detail), node)
            problems.append(problem_at(node, message, hint))
    for loc in missing:
        # A key that is only misspelt is one problem, not two.
        slips = (p for p in problems if p.hint == f"did you mean `{loc[-1]}`?")
        parent = find_known(root, loc[:-1])[0].path
        if not any(slip.path.rpartition(".")[0] == parent for slip in slips):
            problems.append(_missing(root, loc))
    taken = {problem.path for problem in problems}
    for path, (node, details) in shapes.items():
        # An alternative that fails inside explains more than another that does not fit at all.
        if path not in taken and not any(_inside(other, path) for other in {*taken, *shapes}):
            problems.append(problem_at(node, *_wanted(details, node)))
    return problems


def _inside(path: str, outer: str) -> bool:
    return path.startswith((f"{outer}.", f"{outer}["))


def find_known(root: Node, loc: Loc) -> tuple[Node, Loc]:
    """The deepest node on the way along `loc`; steps that name alternatives are left out."""
    node, known = root, []
    for part in loc:
        below, rest = find(node, (part,))
        if not rest:
            node = below
            known.append(part)
    return node, tuple(known)


def _extra(root: Node, loc: Loc, unknown_key: UnknownKey) -> Problem:
    node, known = find_known(root, loc[:-1])
    key = str(loc[-1])
    if not isinstance(node, MapNode):  # only a map has keys; kept for safety of types
        return problem_at(node, f"unknown key `{key}`")
    message, hint = unknown_key(known, key, node)
    return Problem(
        location=str(node.key_location(key)), path=join(node.path, key), message=message, hint=hint
    )


def _missing(root: Node, loc: Loc) -> Problem:
    node, _ = find_known(root, loc[:-1])
    if isinstance(node, ListNode):
        return problem_at(node, f"the list is too short: it has {len(node.items)} entries")
    kind = node.fields.get("kind") if isinstance(node, MapNode) else None
    who = f": `{kind.value}` needs it" if isinstance(kind, ScalarNode) else ""
    return problem_at(node, f"`{loc[-1]}` is missing{who}")


def _message(detail: dict[str, Any], node: Node) -> tuple[str, str | None]:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]), None
    if kind in _LIMITS:
        key, phrase = _LIMITS[kind]
        limit = context[key]
        return f"{shown(node)} {phrase} {limit:{'g' if isinstance(limit, float) else ''}}", None
    if kind == "too_long":
        return f"the list is too long: at most {context['max_length']} entries", None
    if kind in _EMPTY:
        return "this must not be empty", None
    if kind == "union_tag_invalid":
        return _no_kind(node, re.findall(r"'([^']*)'", context["expected_tags"]))
    if kind == "union_tag_not_found":
        return "`kind` is missing", None
    return "this value is not valid here", None


def _no_kind(node: Node, kinds: Sequence[str]) -> tuple[str, str]:
    if not (isinstance(node, ScalarNode) and isinstance(node.value, str)):
        return f"expected a kind, got {shown(node)}", f"kinds: {listed(kinds)}"
    near = nearest(node.value, kinds)
    hint = f"did you mean `{near}`?" if near else f"kinds: {listed(kinds)}"
    return f"there is no kind {shown(node)} here", hint


def _field(node: Node, key: str) -> Node:
    return node.fields.get(key, node) if isinstance(node, MapNode) else node


def _wanted(details: Sequence[dict[str, Any]], node: Node) -> tuple[str, str | None]:
    """One message for all alternatives that do not fit a value."""
    phrases: list[str] = []
    values: list[str] = []
    for detail in details:
        if detail["type"] == "literal_error":
            values += re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        else:
            phrases.append(_WANTED[detail["type"]])
    if values and node.path.endswith(".kind"):
        return _no_kind(node, values)
    if "`true` or `false`" in phrases:
        values += ["true", "false"]
    hint = None
    if isinstance(node, ScalarNode) and node.value is None:
        hint = "remove the key if it should have no value"
    if values and isinstance(node, ScalarNode) and isinstance(node.value, str):
        near = nearest(node.value, values)
        hint = f"did you mean `{near}`?" if near else None
    if details[0]["type"] == "literal_error" and len(details) == 1:
        return f"{shown(node)} is not one of {listed(values)}", hint
    options = list(dict.fromkeys(phrases)) + [
        f"`{value}`" for value in values if value not in ("true", "false")
    ]
    return f"expected {' or '.join(options)}, got {shown(node)}", hint


def shown(node: Node) -> str:
    """A value as it is shown in a message."""
    if isinstance(node, ListNode):
        return "a list"
    if isinstance(node, MapNode):
        return "a map"
    if node.value is None:
        return "nothing"
    if isinstance(node.value, bool):
        return f"`{str(node.value).lower()}`"
    text = str(node.value)
    if not text:
        return "an empty text"
    short = f"`{text if len(text) <= 60 else text[:57] + '...'}`"
    # Only a quoted value can be a text that looks like something else.
    return f"the text {short}" if isinstance(node.value, str) and _looks_otherwise(text) else short


def _looks_otherwise(text: str) -> bool:
    try:
        return not isinstance(read_scalar(text), str)
    except ValueError:
        return True
