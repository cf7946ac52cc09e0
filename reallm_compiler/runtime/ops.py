"""Packed matrices as operators of torch: `reallm::linear`, `::embedding`, `::dequantize`.

    y = torch.ops.reallm.linear(x, sections, form, bias)

An operator takes the section tensors and the form as text (`PackedForm.text`), so a graph that is
compiled or exported holds all that it needs. What is derived from sections (the product, its
kernels and tables) is made at the first call and kept for as long as the section tensors live;
sections that are written to get a new one. Gradients reach `x` and the bias, never the sections.

Operators are registered without `torch.library.custom_op`, whose wrapper costs twice the call.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.kernels.choose import Product, plain_only, product_for
from reallm_compiler.kernels.packed import parse_form

PANEL = 1 << 22
"""Weights of a matrix that are dequantized in one step."""

_library: Any = torch.library.Library("reallm", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor[] sections, str form, Tensor? bias) -> Tensor")
_library.define("transposed(Tensor x, Tensor[] sections, str form) -> Tensor")
_library.define(
    "embedding(Tensor indices, Tensor[] sections, str form, ScalarType dtype) -> Tensor"
)
_library.define(
    "dequantize(Tensor[] sections, str form, ScalarType dtype, int first=0, int? last=None)"
    " -> Tensor"
)


# ---- products that are kept ------------------------------------------------------------------


class _Kept:
    """A product and what it was made of; it goes when one of the section tensors does."""

    __slots__ = ("form", "product", "references", "version")

    def __init__(
        self, product: Product, form: str, version: int, references: Sequence[object]
    ) -> None:
        self.product = product
        self.form = form
        self.version = version
        self.references = references


_kept: dict[tuple[object, ...], _Kept] = {}
_lock = threading.RLock()


def product_of(sections: Sequence[Tensor], form: str, dtype: torch.dtype) -> Product:
    """The product with a packed matrix, made once for its section tensors.

    Args:
        sections: its section tensors in the order of the form.
        form: as text.
        dtype: type of activations.

    Raises:
        FormatError: the form is none, or the sections are not what it asks for.
    """
    key = (dtype, plain_only(), *map(id, sections))
    found = _kept.get(key)
    version = _version(sections)
    if found is not None and found.version == version and found.form == form:
        return found.product
    parsed = parse_form(form)
    # Aliases: the product holds the memory, and not the tensors by whose life it is kept.
    packed = parsed.with_sections([section.detach() for section in sections])
    product = product_for(packed, packed.device, dtype)

    def drop(_: object) -> None:
        with _lock:
            _kept.pop(key, None)

    references = [weakref.ref(section, drop) for section in sections]
    with _lock:
        _kept[key] = _Kept(product, form, version, references)
    return product


def _version(sections: Sequence[Tensor]) -> int:
    """How often the sections were written to, together."""
    return sum(0 if section.is_inference() else section._version for section in sections)


# ---- on devices ------------------------------------------------------------------------------


def _linear(x: Tensor, sections: Sequence[Tensor], form: str, bias: Tensor | None) -> Tensor:
    product = product_of(sections, form, x.dtype)
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y = product.linear(flat if flat.is_contiguous() else flat.contiguous())
    if bias is not None:
        y += bias
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


def _transposed(x: Tensor, sections: Sequence[Tensor], form: str) -> Tensor:
    product = product_of(sections, form, x.dtype)
    y = product.transposed(x.reshape(-1, x.shape[-1]).contiguous())
    return y.view(*x.shape[:-1], y.shape[-1])


def _embedding(
    indices: Tensor, sections: Sequence[Tensor], form: str, dtype: torch.dtype
) -> Tensor:
    (p, q) = parse_form(form).shape
    flat = indices.reshape(-1).to(torch.int64)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= p):
        raise IndexError(f"an index is not in [0, {p}), the rows of the embedding")
    return product_of(sections, form, dtype).rows(flat).view(*indices.shape, q)


def _dequantize(
    sections: Sequence[Tensor],
    form: str,
    dtype: torch.dtype,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    return product_of(sections, form, dtype).rows(_range(form, first, last))


def _range(form: str, first: int, last: int | None) -> range:
    """The rows [first, last) of a matrix, to its end by default, as a slice reads them."""
    return range(parse_form(form).shape[0])[first:last]


for _name, _function in (
    ("linear", _linear),
    ("transposed", _transposed),
    ("embedding", _embedding),
    ("dequantize", _dequantize),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")


# ---- shapes ----------------------------------------------------------------------------------


def _linear_fake(x: Tensor, sections: Sequence[Tensor], form: str, bias: Tensor | None) -> Tensor:
    p, q = parse_form(form).shape
    if x.shape[-1] != q:
        raise ValueError(f"inputs have {x.shape[-1]} columns, and the matrix {q}")
    return x.new_empty((*x.shape[:-1], p))


def _transposed_fake(x: Tensor, sections: Sequence[Tensor], form: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], parse_form(form).shape[1]))


def _embedding_fake(
    indices: Tensor, sections: Sequence[Tensor], form: str, dtype: torch.dtype
) -> Tensor:
    return indices.new_empty((*indices.shape, parse_form(form).shape[1]), dtype=dtype)


def _dequantize_fake(
    sections: Sequence[Tensor],
    form: str,
    dtype: torch.dtype,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    rows, columns = len(_range(form, first, last)), parse_form(form).shape[1]
    return sections[0].new_empty((rows, columns), dtype=dtype)


torch.library.register_fake("reallm::linear", _linear_fake, lib=_library)
torch.library.register_fake("reallm::transposed", _transposed_fake, lib=_library)
torch.library.register_fake("reallm::embedding", _embedding_fake, lib=_library)
torch.library.register_fake("reallm::dequantize", _dequantize_fake, lib=_library)


# ---- gradients -------------------------------------------------------------------------------


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    _, ctx.sections, ctx.form, _ = inputs


def _linear_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    to_x = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = torch.ops.reallm.transposed(gradient, ctx.sections, ctx.form)
    if ctx.needs_input_grad[3]:
        to_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return to_x, [None] * len(ctx.sections), None, to_bias


def _keep_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    _, ctx.sections, ctx.form = inputs


def _transposed_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    to_x = torch.ops.reallm.linear(gradient, ctx.sections, ctx.form)
    return to_x, [None] * len(ctx.sections), None


def _keep_embedding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.count = len(inputs[1])


def _embedding_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return None, [None] * ctx.count, None, None


def _keep_dequantize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.count, ctx.others = len(inputs[0]), len(inputs) - 1


def _dequantize_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return [None] * ctx.count, *[None] * ctx.others


torch.library.register_autograd(
    "reallm::linear", _linear_gradient, setup_context=_keep_linear, lib=_library
)
torch.library.register_autograd(
    "reallm::transposed", _transposed_gradient, setup_context=_keep_transposed, lib=_library
)
torch.library.register_autograd(
    "reallm::embedding", _embedding_gradient, setup_context=_keep_embedding, lib=_library
)
torch.library.register_autograd(
    "reallm::dequantize", _dequantize_gradient, setup_context=_keep_dequantize, lib=_library
)


# ---- without the dispatcher ------------------------------------------------------------------


def linear(x: Tensor, sections: Sequence[Tensor], form: str, bias: Tensor | None) -> Tensor:
    """`reallm::linear`, called directly where nobody looks on: no graph, no tracing.

    The way through torch's dispatcher takes longer than the product of a small matrix.
    """
    graph = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    watched = type(x) is not Tensor or torch._C._len_torch_dispatch_stack() > 0
    if graph or watched or torch.compiler.is_compiling():
        y: Tensor = torch.ops.reallm.linear(x, list(sections), form, bias)
        return y
    return _linear(x, sections, form, bias)
