"""The blocks of a model, what reaches the first, and what each is called with.

A block is an entry of the list of modules that most tuned matrices lie in, such as
`model.layers.3`. It is called by itself with hidden states [b, t, d] and the further arguments
(positions, masks) that the model gives it: these are caught once, on a single sequence, and do for
any number of sequences of that length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.errors import FinetuneError
from reallm_compiler.runtime.linear import TunedLinear
from reallm_compiler.runtime.tunable import TunableModel

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside hidden states."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        path: its name in the model, such as `model.layers.3`.
        module: the module.
        layers: its tuned layers, by matrix name.
    """

    path: str
    module: nn.Module
    layers: Mapping[str, TunedLinear]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What tuning changes in it, as (`MATRIX/part`, parameter)."""
        for name, layer in self.layers.items():
            for part, value in layer.tuned():
                yield f"{name}/{part}", value


class _Caught(Exception):  # noqa: N818 - no error: it ends a forward pass early
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def find_blocks(tunable: TunableModel) -> list[Block]:
    """The blocks of a model, in order.

    Raises:
        FinetuneError: no tuned matrix lies in a list of modules.
    """
    names = {module: path for path, module in tunable.model.named_modules()}
    paths = {name: names[layer] for name, layer in tunable.layers.items()}
    found: Counter[str] = Counter()
    for path in paths.values():
        match = re.match(r"(.+?)\.\d+\.", path)
        if match:
            found[match[1]] += 1
    lists = [
        path
        for path, _ in found.most_common()
        if isinstance(tunable.model.get_submodule(path), nn.ModuleList)
    ]
    if not lists:
        raise FinetuneError("no block of this model holds a matrix that can be tuned")
    blocks = []
    for place, module in enumerate(tunable.model.get_submodule(lists[0])):
        path = f"{lists[0]}.{place}"
        inside = {
            name: tunable.layers[name] for name in paths if paths[name].startswith(path + ".")
        }
        blocks.append(Block(path, module, inside))
    return blocks


def hidden_states(model: Any, first: nn.Module, ids: Tensor) -> Tensor:  # noqa: ANN401
    """What reaches the first block for tokens [b, t]: [b, t, d]."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Caught(args[0] if args else kwargs["hidden_states"])

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _Caught as caught:
        return caught.hidden
    finally:
        handle.remove()
    raise FinetuneError("the model does not call its first block")


def calls_of(model: Any, blocks: list[Block], ids: Tensor) -> list[Call]:  # noqa: ANN401
    """What each block is called with beside hidden states, for one sequence `ids` [1, t]."""
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        calls.append((args[1:], rest))

    handles = [block.module.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(blocks):
        raise FinetuneError(
            f"the model calls {len(calls)} blocks and has {len(blocks)}",
            note="block-wise tuning needs each block to be called once, in order",
            hint="tune end to end alone with `--stage e2e`",
        )
    return calls


def run_block(module: Callable[..., Any], hidden: Tensor, call: Call) -> Tensor:
    """The output [b, t, d] of a block for hidden states [b, t, d]."""
    args, kwargs = call
    output = module(hidden, *args, **kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
