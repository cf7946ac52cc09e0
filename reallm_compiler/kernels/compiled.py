"""Products with packed codes by compiled kernels (`choose.Product`).

A few tokens meet the codes directly. For many, panels of rows are decoded to numbers once and
multiplied as ordinary matrices, which processors do faster from some 12 or 24 tokens on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from reallm_compiler.kernels import jit
from reallm_compiler.kernels.compiled_few import FewTokens
from reallm_compiler.kernels.compiled_job import DTYPES, MatrixJob
from reallm_compiler.kernels.compiled_many import ManyTokens
from reallm_compiler.kernels.form import Form, form_for, form_of
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct, add_residuals
from reallm_compiler.kernels.sides import Sides, sides_of
from reallm_compiler.kernels.targets import TARGETS
from reallm_compiler.storage.windows import CodeWindows


def compiled_product(
    packed: PackedMatrix, device: torch.device, dtype: torch.dtype
) -> CompiledProduct | SumProduct | None:
    """The product of a packed matrix by compiled kernels; None for what they do not do."""
    form = form_of(packed.plan, packed.shape)
    if form is None or dtype not in DTYPES:
        return None
    target = next((name for name in jit.targets() if TARGETS[name].fits(form)), None)
    return None if target is None else product_by(packed, form, dtype, target)


def product_by(
    packed: PackedMatrix, form: Form, dtype: torch.dtype, target: str
) -> CompiledProduct | SumProduct | None:
    """The product of a matrix by the kernels of a target that fits its form; None without sides."""
    sides = sides_of(packed, form)
    if sides is None:
        return None
    if len(sides) == 1 and not sides[0].beside:
        return CompiledProduct(packed, form, sides[0], dtype, target)
    return SumProduct(packed, form, sides, dtype, target)


class CompiledProduct:
    """Products with one packed matrix [p, q].

    Args:
        packed: the matrix, checked, on the CPU.
        form: of its codes.
        sides: what it does on both sides of them.
        dtype: type of activations.
        target: the processor (`jit.targets`).
        exact: activations have two sets of integers, else one; as float32 needs it by default.

    Attributes:
        most_tokens: tokens up to which codes are read for the tokens themselves.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        form: Form,
        sides: Sides,
        dtype: torch.dtype,
        target: str,
        *,
        exact: bool | None = None,
    ) -> None:
        self._packed = packed
        self._dtype = dtype
        exact = dtype == torch.float32 if exact is None else exact
        matrix = MatrixJob(packed, form, sides, dtype, target, exact=exact)
        self.most_tokens = TARGETS[target].most_tokens(matrix.form)
        self._few = FewTokens(matrix)
        # Where rows have orders of their own, panels have none in common with the inputs.
        self._many = None if matrix.form.orders else ManyTokens(matrix)

    @cached_property
    def _plain(self) -> PlainProduct:
        return PlainProduct(self._packed, self._dtype)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        if not len(x):
            return x.new_empty(0, self._packed.shape[0])
        if len(x) <= self.most_tokens:
            return self._few.linear(x)
        return (self._many or self._plain).linear(x)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        if not len(x):
            return x.new_empty(0, self._packed.shape[1])
        return (self._many or self._plain).transposed(x)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        return self._plain.rows(rows)


class SumProduct:
    """Products with a matrix that is a sum: of codes in several sections, and of residuals that
    torch multiplies by.

    Terms are float32, each a kernel's own, and gains come after all of them.

    Args:
        packed: the matrix, checked, on the CPU.
        form: of its codes.
        sides: of each section of codes.
        dtype: type of activations.
        target: the processor (`jit.targets`).
    """

    def __init__(
        self, packed: PackedMatrix, form: Form, sides: list[Sides], dtype: torch.dtype, target: str
    ) -> None:
        self._packed = packed
        self._dtype = dtype
        self._stages, self._gain = sides[0].beside, sides[0].gain
        self._ordered = sides[0].group_orders is not None
        self._terms: list[CompiledProduct] = []
        codes: CodeWindows | None = form.codes
        for one in sides:
            assert codes is not None
            own, bare = form_for(codes, form, packed.shape), replace(one, gain=None)
            exact = dtype == torch.float32
            term = CompiledProduct(packed, own, bare, torch.float32, target, exact=exact)
            self._terms.append(term)
            codes = codes.rest

    @cached_property
    def _plain(self) -> PlainProduct:
        return PlainProduct(self._packed, self._dtype)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        if self._ordered and len(x) > self._terms[0].most_tokens:
            return self._plain.linear(x)
        x = x.to(torch.float32)
        y = self._terms[0].linear(x)
        for term in self._terms[1:]:
            y += term.linear(x)
        add_residuals(self._packed, self._stages, x, y)
        if self._gain is not None:
            y *= self._gain
        return y.to(self._dtype)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        return self._plain.transposed(x)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        return self._plain.rows(rows)
