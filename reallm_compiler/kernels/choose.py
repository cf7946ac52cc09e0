"""The product with a packed matrix: a kernel where there is one for its form, else the plain path.

A kernel hangs in here by a line of `MAKERS`. A maker looks at a matrix that `check_packed` has
passed and returns its product, or None for a form that it does not do; it may derive tables and
orders of its own, and keeps pointers to the sections, whose memory the product's `PackedMatrix`
holds. Sections do not change: whoever changes one asks for a new product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from reallm_compiler.kernels.compiled import compiled_product
from reallm_compiler.kernels.packed import PackedMatrix, check_packed
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.kernels.triton_product import triton_product


class Product(Protocol):
    """Products with one packed matrix W^ [p, q], on one device, for activations of one type.

    Everything of the matrix is in them: residual, gains of rows and columns, transforms. Biases
    are not. Whatever does not need decoding has the values of the dense decode up to rounding.
    """

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p], contiguous, in the type of the product; n may be 0.

        `x` is contiguous and of the product's type and device.
        """
        ...

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q], as `linear`; the gradient of `linear` to its input."""
        ...

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows, [k, q], contiguous, in the type of the product: embeddings, and panels of
        a decoded matrix.

        Args:
            rows: int64 [k] on the product's device, in any order and repeated at will, all in
                [0, p) (the caller has checked); or a range of step 1 within [0, p).
        """
        ...


Maker = Callable[[PackedMatrix, torch.device, torch.dtype], Product | None]
"""(matrix, device, type of activations) -> its product; None for a form that it does not do."""

MAKERS: list[tuple[str, Maker]] = [("cpu", compiled_product), ("cuda", triton_product)]
"""(device type, maker) of all kernels; the first that does a form has it."""

_plain = False


def product_for(packed: PackedMatrix, device: torch.device, dtype: torch.dtype) -> Product:
    """The fastest product that there is with a packed matrix.

    Args:
        packed: the matrix, its sections on `device`.
        device: where activations are.
        dtype: their type: float32, bfloat16, float16 or float64.

    Raises:
        FormatError: the matrix breaks its size law or a value rule (`check_packed`).
    """
    check_packed(packed)
    if not _plain:
        for kind, maker in MAKERS:
            product = maker(packed, device, dtype) if kind == device.type else None
            if product is not None:
                return product
    return PlainProduct(packed, dtype)


def plain_only() -> bool:
    """Whether `only_plain` is in force."""
    return _plain


@contextmanager
def only_plain() -> Iterator[None]:
    """No kernels inside: every product is the plain one, of this process and all its threads."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before
