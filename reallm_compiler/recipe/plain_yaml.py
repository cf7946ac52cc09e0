"""Plain data as YAML that people read: small maps on one line, the rest in blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reallm_compiler.stages import MatrixPlan

LINE = 110
"""Columns that a map on one line may take."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*|\d+/\d+")
_TAKEN = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def to_yaml(value: Any, indent: int = 0) -> str:  # noqa: ANN401
    """`value` (maps, lists, texts, numbers, truth values, None) as YAML lines."""
    pad = " " * indent
    if isinstance(value, Mapping) and value:
        return "\n".join(
            f"{pad}{_scalar(key)}:{_after_key(item, indent)}" for key, item in value.items()
        )
    if _is_list(value) and value:
        return "\n".join(f"{pad}- {_item(item, indent)}" for item in value)
    return f"{pad}{on_one_line(value)}"


def _after_key(value: Any, indent: int) -> str:  # noqa: ANN401
    if _is_short(value, indent) and not _has_maps(value):
        return f" {on_one_line(value)}"
    return f"\n{to_yaml(value, indent + 2)}"


def _item(value: Any, indent: int) -> str:  # noqa: ANN401
    if isinstance(value, Mapping) and value:
        return to_yaml(value, indent + 2).lstrip()
    return on_one_line(value)


def _is_short(value: Any, indent: int) -> bool:  # noqa: ANN401
    simple = not isinstance(value, Mapping) and not _is_list(value)
    return simple or indent + len(on_one_line(value)) <= LINE


def _has_maps(value: Any) -> bool:  # noqa: ANN401
    """A list of maps, or a map of maps with more than one entry: more readable in block style."""
    if isinstance(value, Mapping):
        return any(isinstance(item, Mapping) and len(item) > 1 for item in value.values())
    return _is_list(value) and any(isinstance(item, Mapping) for item in value)


def _is_list(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def on_one_line(value: Any) -> str:  # noqa: ANN401
    """`value` as YAML on one line."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_scalar(key)}: {on_one_line(item)}" for key, item in value.items())
        return f"{{{inside}}}"
    if _is_list(value):
        return f"[{', '.join(on_one_line(item) for item in value)}]"
    return _scalar(value)


def _scalar(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _TAKEN:
            return value
        return _quoted(value)
    if isinstance(value, bytes):
        return json.dumps(value.hex())
    return json.dumps(value)


def _quoted(text: str) -> str:
    """A double-quoted scalar; JSON's escapes stop at 16 bits, YAML's do not."""
    return "".join(
        char if char.isprintable() else f"\\U{ord(char):08x}"
        for char in json.dumps(text, ensure_ascii=False)
    )


_ORDER = (
    "reallm", "seed", "statistics", "defaults", "rules", "finetune", "match", "role",
    "min_fraction", "except", "layers", "set", "keep", "optional", "note", "kind",
    *MatrixPlan.model_fields,
)  # fmt: skip


def in_reading_order(value: Any) -> Any:  # noqa: ANN401
    """Plain data with the keys of its maps in the order in which a recipe is read.

    An archive stores maps sorted, which puts `dora` before `quantizer`.
    """
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
        return {key: in_reading_order(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [in_reading_order(item) for item in value]
    return value
