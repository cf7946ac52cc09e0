"""What the operators of torch do with packed weights (`weight.PackedWeight`).

A handler returns NotImplemented for what goes by decoding. Weights are made by their own type, so
that this file need not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_map

from reallm_compiler.runtime.pieces import Pieces

aten = torch.ops.aten

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""(operator, args, kwargs) -> result; NotImplemented for what goes by decoding."""

_aliasing: Callable[..., Any] = _python_dispatch.return_and_correct_aliasing


def is_packed(value: object) -> bool:
    """Whether something is a packed weight."""
    return isinstance(getattr(value, "value", None), Pieces)


def dense(value: Any) -> Any:  # noqa: ANN401
    """A packed weight decoded, anything else as it is."""
    return value.dequantize() if is_packed(value) else value


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """An operator that writes to its first argument, a packed weight, which becomes dense."""
    weight = args[0]
    values = weight.dequantize().clone(memory_format=torch.contiguous_format)
    func(values, *tree_map(dense, args[1:]), **tree_map(dense, kwargs))
    weight.write(values)
    return weight


def _alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    weight = args[0]
    made = type(weight)(weight.value, weight.dtype, weight.experts, weight.flipped)
    return _aliasing(func, args, kwargs, made)


def _clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    weight = args[0]
    return type(weight)(weight.value.copy(), weight.dtype, weight.experts, weight.flipped)


def _to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    weight, dtype = args[0], kwargs.get("dtype") or args[0].dtype
    if not dtype.is_floating_point:
        return NotImplemented
    device = torch.device(kwargs.get("device") or weight.device)
    if device.type == "meta":
        return torch.empty_strided(weight.shape, weight.stride(), dtype=dtype, device=device)
    pieces = weight.value.pieces
    if device != weight.device:
        pieces = [piece.moved(device) for piece in pieces]
    return type(weight)(Pieces(pieces), dtype, weight.experts, weight.flipped)


def _transpose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    weight = args[0]
    dims = {dim % weight.dim() for dim in args[1:]} or {0, 1}
    if dims != {weight.dim() - 2, weight.dim() - 1}:
        return NotImplemented
    made = type(weight)(weight.value, weight.dtype, weight.experts, not weight.flipped)
    return _aliasing(func, args, kwargs, made)


def _select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """One expert of a stack. It shares no storage, and is no view that could be written through."""
    weight, dim, index = args
    if weight.experts is None or dim % 3 != 0:
        return NotImplemented
    if not -weight.experts <= index < weight.experts:
        raise IndexError(f"expert {index} of {weight.experts}")
    return _expert(weight, index % weight.experts)


def _expert(weight: Any, index: int) -> Any:  # noqa: ANN401
    experts = weight.experts or 1
    each = len(weight.value.pieces) // experts
    pieces = weight.value.pieces[index * each : (index + 1) * each]
    return type(weight)(Pieces(pieces), weight.dtype, None, weight.flipped)


def _rows(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Some rows of a matrix of one piece, decoded; the others are not."""
    given: tuple[Any, ...] = (*args, *(None, 0, None, None, 1)[len(args) :])
    weight, dim, first, last, step = given
    plain = weight.experts is None and not weight.flipped and len(weight.value.pieces) == 1
    if not plain or dim % 2 != 0 or step != 1:
        return NotImplemented
    start, stop, _ = slice(first, last).indices(len(weight))
    return weight.value.pieces[0].dense(weight.dtype, start, max(start, stop))


def _stack(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Matrices of one shape as experts."""
    weights, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if dim != 0 or not _alike(weights) or weights[0].experts is not None:
        return NotImplemented
    pieces = [piece for one in weights for piece in one.value.pieces]
    if len({len(one.value.pieces) for one in weights}) > 1:
        return NotImplemented
    return type(weights[0])(Pieces(pieces), weights[0].dtype, len(weights), weights[0].flipped)


def _cat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Rows after rows, of matrices or of the experts of stacks."""
    weights, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if not _alike(weights, rows=False):
        return NotImplemented
    first = weights[0]
    if dim % first.dim() != first.dim() - (1 if first.flipped else 2):
        return NotImplemented
    experts = [_expert(one, index) for index in range(first.experts or 1) for one in weights]
    pieces = [piece for one in experts for piece in one.value.pieces]
    return type(first)(Pieces(pieces), first.dtype, first.experts, first.flipped)


def _alike(weights: Sequence[Any], *, rows: bool = True) -> bool:
    """Whether all are packed weights that differ in their pieces alone; `rows`: also in shape."""
    if not all(is_packed(one) for one in weights):
        return False
    facts = {
        (
            one.dtype,
            one.device,
            one.experts,
            one.flipped,
            one.value.pieces[0].shape[1],
            tuple(one.shape) if rows else None,
        )
        for one in weights
    }
    return len(facts) == 1


def _product(
    x: Tensor,
    weight: Any,  # noqa: ANN401
    bias: Tensor | None = None,
) -> Any:  # noqa: ANN401
    """x @ weight + bias for one matrix, [..., a] x [a, b]."""
    pieces = weight.value.pieces
    if weight.flipped:
        if len(pieces) == 1:
            return pieces[0].linear(x, bias)
        y = torch.cat([piece.linear(x) for piece in pieces], -1)
    else:
        parts = torch.split(x, [piece.shape[0] for piece in pieces], -1)
        y = pieces[0].transposed(parts[0])
        for piece, part in zip(pieces[1:], parts[1:], strict=True):
            y = y + piece.transposed(part)
    return y if bias is None else y + bias


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    x, weight, bias = (*args, None)[:3]
    if is_packed(x) or weight.dim() != 2:
        return NotImplemented
    swapped = type(weight)(weight.value, weight.dtype, None, not weight.flipped)
    return _product(x, swapped, bias)


def _mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    x, weight = args
    if is_packed(x):
        return NotImplemented
    return _product(x, weight)


def _addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    bias, x, weight = args
    scaled = kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1
    if scaled or is_packed(x) or is_packed(bias):
        return NotImplemented
    return _product(x, weight, bias) if bias.dim() == 1 else _product(x, weight) + bias


def _bmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    x, weight = args
    if is_packed(x):
        return NotImplemented
    return torch.stack([_product(x[index], _expert(weight, index)) for index in range(len(x))])


def _embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    weight, indices = args[:2]
    if weight.flipped or weight.experts is not None or len(weight.value.pieces) > 1:
        return NotImplemented
    (piece,) = weight.value.pieces
    if not piece.form:
        return NotImplemented
    return torch.ops.reallm.embedding(indices, list(piece.sections), piece.form, weight.dtype)


HANDLERS: dict[Any, Handler] = {
    aten.detach.default: _alias,
    aten.alias.default: _alias,
    aten.clone.default: _clone,
    aten._to_copy.default: _to,
    aten.t.default: _transpose,
    aten.transpose.int: _transpose,
    aten.select.int: _select,
    aten.slice.Tensor: _rows,
    aten.stack.default: _stack,
    aten.cat.default: _cat,
    aten.linear.default: _linear,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.embedding.default: _embedding,
}
