"""Which matrices read one input, and what makes it: where factors of columns can be folded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.prepare.graph import Producer, Purpose, graph_of
from reallm_compiler.tensors import Origin

FOLD = Purpose(
    action="`fold` of a transform cannot divide inputs where they are made in",
    hint="leave `fold` out of the transform: its factors are stored then",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """Matrices that read one input, and what makes it.

    Attributes:
        producer: what makes it.
        consumers: the tensors of the matrices, in storage order.
    """

    producer: Producer
    consumers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """The inputs of some matrices.

    Attributes:
        known: by the names of the tensors that make them.
        unknown: those of the matrices whose input nothing makes alone, and why.
    """

    known: dict[str, Activation]
    unknown: dict[str, str]


def activations_of(inventory: Inventory, tensors: Collection[str]) -> Activations:
    """The inputs that some matrices read, each with all matrices that read it.

    Args:
        inventory: of the checkpoint, or of the prepared model.
        tensors: names of the matrices' tensors.

    Raises:
        SourceError: the graph of the model is not known.
    """
    specs = {spec.name: spec for spec in inventory.tensors}
    graph = graph_of(inventory.config, specs, inventory.path or "the model", FOLD)
    consumers: dict[str, list[str]] = {}
    producers: dict[str, Producer] = {}
    for name in specs:
        producer = graph.roles[name].producer
        if producer is not None and producer.tensor in specs:
            producers[producer.tensor] = producer
            consumers.setdefault(producer.tensor, []).append(name)
    found = Activations(known={}, unknown={})
    for name in tensors:
        producer = graph.roles[name].producer
        if producer is None or producer.tensor not in specs:
            found.unknown[name] = "its input is made by no norm and no matrix alone"
            continue
        first, last = producer.rows or (0, specs[producer.tensor].shape[0])
        if specs[name].shape[-1] != (last - first) * producer.times:
            found.unknown[name] = f"it has not as many columns as `{producer.tensor}` makes inputs"
            continue
        own = tuple(consumers[producer.tensor])
        found.known[producer.tensor] = Activation(
            producer=producers[producer.tensor], consumers=own
        )
    return found


def changed_by(inventory: Inventory) -> frozenset[str]:
    """The tensors that a `fold` may change: what makes inputs, its biases, and what reads them.

    Raises:
        SourceError: the graph of the model is not known.
    """
    names = [spec.name for spec in inventory.tensors]
    graph = graph_of(inventory.config, names, inventory.path or "the model", FOLD)
    producers = [
        (name, role.producer) for name, role in graph.roles.items() if role.producer is not None
    ]
    changed = {
        name
        for consumer, producer in producers
        for name in (consumer, producer.tensor, producer.bias)
    }
    return frozenset(name for name in names if name in changed)


def fold_factors(inventory: Inventory, activations: Iterable[Activation]) -> Inventory:
    """The inventory of the model whose matrices are scaled, and their inputs divided.

    The factors themselves are named by the tensor that makes the input (`Origin`).
    """
    origins = {spec.name: spec.origin or Origin(tensor=spec.name) for spec in inventory.tensors}
    before = dict(origins)
    for activation in activations:
        producer = activation.producer
        for name in activation.consumers:
            origins[name] = replace(
                origins[name],
                column_factors=producer.tensor,
                column_heads=(producer.head, producer.times),
            )
        for made_by in (producer.tensor, producer.bias):
            if made_by in origins:
                origins[made_by] = replace(
                    origins[made_by],
                    row_factors=producer.tensor,
                    row_range=producer.rows,
                    offset=producer.offset,
                )
    tensors = tuple(
        spec
        if origins[spec.name] == before[spec.name]
        else replace(spec, origin=origins[spec.name])
        for spec in inventory.tensors
    )
    return replace(inventory, tensors=tensors, original=inventory.original or inventory)
