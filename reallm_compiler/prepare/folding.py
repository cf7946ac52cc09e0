"""Which matrices read one input, and what makes it: where factors of columns can be folded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.prepare.graph import Maker, Purpose, graph_of
from reallm_compiler.tensors import Origin

FOLD = Purpose(
    action="`fold` of a transform cannot divide inputs where they are made in",
    hint="leave `fold` out of the transform: its factors are stored then",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """Matrices that read one input, and what makes it.

    Attributes:
        maker: what makes it.
        readers: the tensors of the matrices, in storage order.
    """

    maker: Maker
    readers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feeds:
    """The inputs of some matrices.

    Attributes:
        known: by the names of the tensors that make them.
        unknown: those of the matrices whose input nothing makes alone, and why.
    """

    known: dict[str, Feed]
    unknown: dict[str, str]


def feeds_of(inventory: Inventory, tensors: Collection[str]) -> Feeds:
    """The inputs that some matrices read, each with all matrices that read it.

    Args:
        inventory: of the checkpoint, or of the prepared model.
        tensors: names of the matrices' tensors.

    Raises:
        SourceError: the graph of the model is not known.
    """
    specs = {spec.name: spec for spec in inventory.tensors}
    graph = graph_of(inventory.config, specs, inventory.path or "the model", FOLD)
    readers: dict[str, list[str]] = {}
    makers: dict[str, Maker] = {}
    for name in specs:
        maker = graph.roles[name].maker
        if maker is not None and maker.tensor in specs:
            makers[maker.tensor] = maker
            readers.setdefault(maker.tensor, []).append(name)
    found = Feeds(known={}, unknown={})
    for name in tensors:
        maker = graph.roles[name].maker
        if maker is None or maker.tensor not in specs:
            found.unknown[name] = "its input is made by no norm and no matrix alone"
            continue
        first, last = maker.rows or (0, specs[maker.tensor].shape[0])
        if specs[name].shape[-1] != (last - first) * maker.times:
            found.unknown[name] = f"it has not as many columns as `{maker.tensor}` makes inputs"
            continue
        own = tuple(readers[maker.tensor])
        found.known[maker.tensor] = Feed(maker=makers[maker.tensor], readers=own)
    return found


def changed_by(inventory: Inventory) -> frozenset[str]:
    """The tensors that a `fold` may change: what makes inputs, its biases, and what reads them.

    Raises:
        SourceError: the graph of the model is not known.
    """
    names = [spec.name for spec in inventory.tensors]
    graph = graph_of(inventory.config, names, inventory.path or "the model", FOLD)
    makers = [(name, role.maker) for name, role in graph.roles.items() if role.maker is not None]
    changed = {name for reader, maker in makers for name in (reader, maker.tensor, maker.bias)}
    return frozenset(name for name in names if name in changed)


def fold_factors(inventory: Inventory, feeds: Iterable[Feed]) -> Inventory:
    """The inventory of the model whose matrices are scaled, and their inputs divided.

    The factors themselves are named by the tensor that makes the input (`Origin`).
    """
    origins = {spec.name: spec.origin or Origin(tensor=spec.name) for spec in inventory.tensors}
    before = dict(origins)
    for feed in feeds:
        maker = feed.maker
        for name in feed.readers:
            origins[name] = replace(
                origins[name], column_factors=maker.tensor, column_heads=(maker.head, maker.times)
            )
        for made_by in (maker.tensor, maker.bias):
            if made_by in origins:
                origins[made_by] = replace(
                    origins[made_by],
                    row_factors=maker.tensor,
                    row_range=maker.rows,
                    offset=maker.offset,
                )
    tensors = tuple(
        spec
        if origins[spec.name] == before[spec.name]
        else replace(spec, origin=origins[spec.name])
        for spec in inventory.tensors
    )
    return replace(inventory, tensors=tensors, original=inventory.original or inventory)
