"""A part of a plan with lists of values as all the parts that they span.

A list where a plan takes one value stands for each of its entries in turn. Where a plan takes a
list itself (transforms, residuals that are added up), a list of lists does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

from reallm_compiler.recipe.nodes import ListNode, MapNode, Node, ScalarNode
from reallm_compiler.recipe.vocabulary import stages
from reallm_compiler.stages import MatrixPlan

MOST_VARIANTS = 4096

T = TypeVar("T")


def variants(patch: MapNode) -> list[MapNode]:
    """The parts of a plan that a part with lists spans, the last list running fastest.

    Raises:
        ValueError: there are more than `MOST_VARIANTS`.
    """
    found = _few(_maps(patch, None))
    if len(found) > MOST_VARIANTS:
        raise ValueError(
            f"the lists span more than {MOST_VARIANTS} plans; divide them, or leave values out"
        )
    return found


def _maps(node: MapNode, stage: str | None) -> Iterator[MapNode]:
    """The maps that a map of a plan's fields (`stage` None) or of a kind's parameters spans."""
    kind = node.fields.get("kind")
    named = str(kind.value) if isinstance(kind, ScalarNode) else None
    options = [
        _few(_options(value, key if stage is None else None, _takes_list(stage, key, named)))
        for key, value in node.fields.items()
    ]
    for values in itertools.product(*options):
        yield replace(node, fields=dict(zip(node.fields, values, strict=True)))


def _options(node: Node, stage: str | None, takes_list: bool) -> Iterator[Node]:
    """The values that a field's value spans.

    Args:
        node: what is written.
        stage: the stage whose kinds its maps are; None for a parameter.
        takes_list: whether the field takes a list.
    """
    if isinstance(node, ListNode):
        if takes_list and not (node.items and all(isinstance(i, ListNode) for i in node.items)):
            spanned = [_few(_options(item, stage, False)) for item in node.items]
            for items in itertools.product(*spanned):
                yield replace(node, items=items)
        else:
            for item in node.items:
                yield from _options(item, stage, takes_list)
    elif isinstance(node, MapNode) and stage is not None:
        yield from _maps(node, stage)
    else:
        yield node


def _few(found: Iterator[T]) -> list[T]:
    """As many as are too many, and no more: lists of lists could fill the memory."""
    return list(itertools.islice(found, MOST_VARIANTS + 1))


def _takes_list(stage: str | None, key: str, kind: str | None) -> bool:
    """Whether a field of a plan, or a parameter of a stage's kind, takes a list."""
    if stage is None:
        models: list[Any] = [MatrixPlan]
    else:
        kinds = stages().get(stage, {})
        models = [kinds[kind]] if kind is not None and kind in kinds else list(kinds.values())
    fields = [model.model_fields[key] for model in models if key in model.model_fields]
    return any(_holds_list(field.annotation) for field in fields)


def _holds_list(annotation: Any) -> bool:  # noqa: ANN401 - any annotation
    origin = get_origin(annotation)
    return origin in (tuple, list) or any(map(_holds_list, get_args(annotation)))
