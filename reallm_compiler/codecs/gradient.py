"""Gradients of a decoded matrix to the numbers that it is decoded from, its codes held fixed.

    W^(s_1, s_2, ...) = decode(codes; s_1, s_2, ...),    dL/ds_i = sum over weights of
                                                         dL/dW^ dW^/ds_i

with s_i the scales, the codebook, and whatever else the sections hold in numbers. Any kind whose
decoder is made of differentiable operations will do: in the backward pass each panel of rows is
decoded once more, with a graph, and the graph is gone before the next one. So packed codes stay
packed, and nothing of full size is kept but the matrix and its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs.decode import MatrixDecoder
from reallm_compiler.storage.matrix import MatrixLayout


def decode_tracked(
    layout: MatrixLayout, sections: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
) -> Tensor:
    """The matrix [p, q] in float32, as a function of some of its sections.

    Args:
        layout: of the matrix.
        sections: its other section tensors by role, as they are stored.
        numbers: section tensors by role in float32, of their stored extents; gradients reach those
            that need them. A table of integers is given in its integers.
    """
    result: Tensor = _Decode.apply(  # type: ignore[no-untyped-call]
        layout, dict(sections), tuple(numbers), *numbers.values()
    )
    return result


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        layout: MatrixLayout,
        sections: dict[str, Tensor],
        roles: tuple[str, ...],
        *numbers: Tensor,
    ) -> Tensor:
        ctx.facts = layout, sections, roles
        ctx.save_for_backward(*numbers)
        decoder = _decoder(layout, sections, roles, numbers)
        result = torch.empty(layout.shape, dtype=torch.float32, device=numbers[0].device)
        for first, last in decoder.panels():
            result[first:last] = decoder.rows(first, last)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        layout, sections, roles = ctx.facts
        (gradient,) = gradients
        needed = ctx.needs_input_grad[3:]
        numbers = [
            value.detach().requires_grad_(wanted)
            for value, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            decoder = _decoder(layout, sections, roles, numbers)
            for first, last in decoder.panels():
                rows = decoder.rows(first, last)
                # What all panels share, such as codewords times their scale, stays in the graph.
                torch.autograd.backward(rows, gradient[first:last], retain_graph=True)
        found = (value.grad if value.requires_grad else None for value in numbers)
        return None, None, None, *found


def _decoder(
    layout: MatrixLayout,
    sections: Mapping[str, Tensor],
    roles: tuple[str, ...],
    numbers: Any,  # noqa: ANN401 (a tuple or a list of tensors)
) -> MatrixDecoder:
    return MatrixDecoder(
        layout, {**sections, **dict(zip(roles, numbers, strict=True))}, torch.float32
    )
