"""The blocks of a model, what reaches the first, and what each is called with.

A block is an entry of the list of modules that most of some layers lie in, such as
`model.layers.3`. It is called by itself with hidden states [b, t, d] and the further arguments
that the model gives it: positions, masks, and in some architectures what depends on the tokens
(per-layer embeddings of Gemma 4, the embeddings that Zamba 2 hands to every block). The model
itself makes them for each batch: it is run up to the block, and the blocks before it pass their
hidden states on without computing. So nothing is kept, and no sequence gets the arguments of
another. What an earlier block computes for a later one (keys and values that blocks share) cannot
be had in this way: `calls_of` compares with the model before any work, and refuses.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reallm_compiler.errors import ReallmError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside hidden states."""


class UnfitBlocksError(ReallmError):
    """The blocks of a model cannot be run one by one; `location` is the block, `note` says why."""

    code: ClassVar[str] = "unfit-blocks"


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        path: its name in the model, such as `model.layers.3`.
        module: the module.
        layers: those of the given layers that lie in it, by name.
    """

    path: str
    module: nn.Module
    layers: Mapping[str, Any]


def find_blocks(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[Block]:
    """The blocks of a model, in order: the list of modules that most of `layers` lie in.

    Args:
        model: the model.
        layers: modules of it, by names of any kind.

    Raises:
        UnfitBlocksError: none of them lies in a list of modules.
    """
    names = {module: path for path, module in model.named_modules()}
    paths = {name: names[layer] for name, layer in layers.items()}
    found: Counter[str] = Counter()
    for path in paths.values():
        match = re.match(r"(.+?)\.\d+\.", path)
        if match:
            found[match[1]] += 1
    lists = [
        path
        for path, _ in found.most_common()
        if isinstance(model.get_submodule(path), nn.ModuleList)
    ]
    if not lists:
        raise _unfit("no list of modules holds any of these layers")
    blocks = []
    modules: Any = model.get_submodule(lists[0])
    for index, module in enumerate(modules):
        path = f"{lists[0]}.{index}"
        inside = {name: layers[name] for name in paths if paths[name].startswith(path + ".")}
        blocks.append(Block(path, module, inside))
    return blocks


class _Caught(Exception):  # noqa: N818 - no error: it ends a forward pass early
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.hidden, self.call = _split(args, kwargs)


class Calls:
    """What a model calls its blocks with beside hidden states. Use `calls_of`.

    Args:
        model: the model.
        blocks: its blocks.
        outputs: of each block, the entries of the tuple that it returns; None for a bare tensor.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers has no types)
        blocks: Sequence[Block],
        outputs: Sequence[int | None],
    ) -> None:
        self._model = model
        self._blocks = blocks
        self._outputs = outputs

    def of(self, number: int, ids: Tensor) -> Call:
        """What block `number` is called with for tokens [b, t], made afresh."""
        before = zip(self._blocks[:number], self._outputs, strict=False)
        with _skipped([(block.module, entries) for block, entries in before]):
            return _catch(self._model, self._blocks[number].module, ids).call

    @contextmanager
    def rest(self) -> Iterator[Callable[[Tensor, Tensor], Any]]:
        """What the model does after its blocks, as a function that several threads may call.

        It gives the output of the model for hidden states [b, t, d] of the last block and tokens
        [b, t].
        """
        given = threading.local()
        pairs = zip(self._blocks, self._outputs, strict=True)

        def run(hidden: Tensor, ids: Tensor) -> Any:  # noqa: ANN401
            given.hidden = hidden
            return self._model(input_ids=ids, use_cache=False)

        with _skipped([(block.module, entries) for block, entries in pairs], given):
            yield run


def hidden_states(model: Any, first: nn.Module, ids: Tensor) -> Tensor:  # noqa: ANN401
    """What reaches the first block for tokens [b, t]: [b, t, d]."""
    return _catch(model, first, ids).hidden


def run_block(module: Callable[..., Any], hidden: Tensor, call: Call) -> Tensor:
    """The output [b, t, d] of a block for hidden states [b, t, d]."""
    args, kwargs = call
    result: Tensor = _first(module(hidden, *args, **kwargs))
    return result


def calls_of(model: Any, blocks: Sequence[Block], ids: Tensor) -> Calls:  # noqa: ANN401
    """What the model calls its blocks with, once it is sure that they can be run one by one.

    Two passes of the model over `ids`: what goes into and comes out of each block in the model is
    compared with what the block makes alone, of the same hidden states.

    Args:
        model: the model.
        blocks: its blocks.
        ids: tokens [b, t], best of two sequences that differ.

    Raises:
        UnfitBlocksError: the blocks cannot be run one by one; says why.
    """
    met: list[nn.Module] = []
    inputs: list[Tensor] = []
    outputs: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        met.append(module)
        inputs.append(_split(args, kwargs)[0].clone())  # as a block may work in place

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        entries = len(output) if isinstance(output, tuple | list) else None
        outputs.append((_first(output).clone(), entries))

    modules = [block.module for block in blocks]
    hooks = [module.register_forward_pre_hook(before, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(after) for module in modules]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if [id(module) for module in met] != [id(module) for module in modules]:
        raise _unfit("the model does not call each of its blocks once and in order")
    calls = Calls(model, blocks, [entries for _, entries in outputs])
    turned = ids.flip(0)  # so that nothing that the pass above has left in the model would do
    for number, block in enumerate(blocks):
        made = outputs[number][0]
        if inputs[number].shape[:-1] != ids.shape or made.shape != inputs[number].shape:
            shapes = f"{list(inputs[number].shape)} and {list(made.shape)}"
            raise _unfit(f"hidden states before and after it are {shapes}", block)
        if number and not _same(inputs[number], outputs[number - 1][0]):
            raise _unfit("its input is not the output of the block before it", block)
        try:
            with torch.no_grad():
                alone = run_block(block.module, inputs[number].flip(0), calls.of(number, turned))
        except Exception as error:  # whatever the architecture makes of it
            why = f"it needs what an earlier block computed ({type(error).__name__}: {error})"
            raise _unfit(why, block) from error
        if not _same(alone.flip(0), made):
            raise _unfit("alone it computes other values than in the model", block)
    return calls


def _unfit(why: str, block: Block | None = None) -> UnfitBlocksError:
    return UnfitBlocksError(
        "the blocks of this model cannot be run one by one",
        location=block.path if block is not None else None,
        note=why,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two results are equal but for rounding."""
    wrong, whole = float((one.double() - other.double()).norm()), float(other.double().norm())
    return wrong <= math.sqrt(torch.finfo(one.dtype).eps) * whole


def _catch(model: Any, module: nn.Module, ids: Tensor) -> _Caught:  # noqa: ANN401
    """What a block is called with in a forward pass, which ends there."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Caught(args, kwargs)

    hook = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _Caught as caught:
        return caught
    finally:
        hook.remove()
    raise _unfit("the model does not call its first block for text")


@contextmanager
def _skipped(
    modules: Sequence[tuple[nn.Module, int | None]], given: threading.local | None = None
) -> Iterator[None]:
    """Let each of these blocks give back its hidden states as they are, or those of `given`."""

    def passing(entries: int | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            hidden = _split(args, kwargs)[0] if given is None else given.hidden
            # No other entry of a tuple is known; a block that needs one fails, and is refused.
            return hidden if entries is None else (hidden, *(None,) * (entries - 1))

        return forward

    for module, entries in modules:
        module.forward = passing(entries)
    try:
        yield
    finally:
        for module, _ in modules:
            del module.forward


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states, and what a block is called with beside them."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    if "hidden_states" not in kwargs:
        raise _unfit("the model calls its blocks without hidden states")
    return kwargs["hidden_states"], ((), rest)


def _first(output: Any) -> Any:  # noqa: ANN401
    return output[0] if isinstance(output, tuple | list) else output
