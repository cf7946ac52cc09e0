"""Who set which field of a plan: found when it is asked for, from the parts that were merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.check import BUILT_IN
from reallm_compiler.recipe.nodes import Location, MapNode, leaves, to_plain
from reallm_compiler.recipe.patch import merge_all
from reallm_compiler.recipe.rule import Rule
from reallm_compiler.stages import MatrixPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSource:
    """Who set a field.

    Attributes:
        path: the field, such as `residual.rank`, or `keep`.
        value: its value as plain data.
        location: `file:line` of the last writer; `default` if no recipe wrote it.
        origin: the last writer's path in its document, such as `rules[2].set.residual.rank` or
            `defaults.residual.rank`; empty if no recipe wrote it.
        overridden: `file:line` of earlier writers of the same field, the first one first.
    """

    path: str
    value: object
    location: str
    origin: str
    overridden: tuple[str, ...] = ()

    def problem(self, message: str, hint: str | None = None) -> Problem:
        """A problem with the value, or with the kind that it belongs to."""
        path = self.origin.removesuffix(".kind")
        return Problem(location=self.location, path=path, message=message, hint=hint)


def trace_of(plan: MatrixPlan, layers: Sequence[MapNode]) -> tuple[FieldSource, ...]:
    """For every field of a plan who set it.

    Args:
        plan: the plan; its share group may have been divided.
        layers: the defaults and the parts that were put over them, in order.
    """
    tree = merge_all(layers)
    final = dict(leaves(tree))
    writers = [_written(layer) for layer in layers]
    sources = []
    for path, value in _fields(_as_written(plan.plain(), tree)):
        node = final.get(path)
        if node is None or node.location == BUILT_IN:
            source = FieldSource(path=path, value=value, location=BUILT_IN.file, origin="")
        else:
            location = _line(node.location, node.path)
            others = (written[path] for written in writers if path in written)
            source = FieldSource(
                path=path,
                value=value,
                location=location,
                origin=node.path,
                overridden=tuple(other for other in others if other != location),
            )
        sources.append(source)
    return tuple(sources)


def trace_of_kept(rule: Rule | None) -> tuple[FieldSource, ...]:
    """Who keeps a tensor: the rule, or none that codes it."""
    if rule is None or rule.keep is None:
        return (FieldSource(path="keep", value="source", location=BUILT_IN.file, origin=""),)
    location = rule.location_of("keep")
    path = f"{rule.path}.keep"
    return (FieldSource(path="keep", value=rule.keep, location=_line(location, path), origin=path),)


def _written(layer: MapNode) -> dict[str, str]:
    """The fields that a part of a plan writes, and in which line."""
    return {
        path: _line(node.location, node.path)
        for path, node in leaves(layer)
        if node.location != BUILT_IN
    }


def _line(location: Location, path: str) -> str:
    """`file:line`; a recipe without lines is cited by path."""
    if location == BUILT_IN:
        return location.file
    return f"{location.file}:{location.line}" if location.line else f"{location.file}: {path}"


def _as_written(plan: Mapping[str, Any], tree: MapNode) -> dict[str, Any]:
    """A plain plan with the list of a stage as the map of its one kind, where that was written."""
    written = dict(plan)
    for key, node in tree.fields.items():
        if isinstance(node, MapNode) and isinstance(plan[key], list):
            written[key] = plan[key][0] if plan[key] else to_plain(node)
    return written


def _fields(plan: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a plain plan, each with its path."""
    for key, value in plan.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
