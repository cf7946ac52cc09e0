"""Packed matrices of random numbers that keep the value rules of their sections.

How fast a product is does not hang on what its numbers are, so nothing needs to be coded for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.codecs.sections import stored_dtype, stored_shape
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.sparse import SparseIndex
from reallm_compiler.storage.values import Ones, Order


def random_matrix(form: PackedForm, seed: int = 0) -> PackedMatrix:
    """A packed matrix of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return form.with_sections([random_section(spec, generator) for spec in form.specs])


def random_section(spec: SectionSpec, generator: torch.Generator) -> Tensor:
    """A section's tensor that keeps its value rule, for the rules known here."""
    rule = spec.values
    if isinstance(rule, Ones):
        mask = torch.zeros(spec.shape, dtype=torch.uint8)
        mask.view(-1)[torch.randperm(mask.numel(), generator=generator)[: rule.count]] = 1
        return pack(mask, 1)
    if isinstance(rule, Order):
        rows, columns = spec.shape
        orders = torch.rand(rows, columns, generator=generator).argsort(1)
        return pack(orders, int(spec.dtype[1:]))
    if isinstance(rule, SparseIndex):
        return pack(_outliers(rule), int(spec.dtype[1:]))
    dtype, shape = stored_dtype(spec), stored_shape(spec)
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) * 0.01 + 0.01).to(dtype)
    least = -127 if dtype == torch.int8 else 0
    most = 128 if dtype == torch.int8 else 256
    return torch.randint(least, most, shape, generator=generator, dtype=dtype)


def _outliers(rule: SparseIndex) -> Tensor:
    """Counts of all rows, as even as may be, and columns that are spread over each row."""
    (p, q), counts = rule.shape, []
    for block, kept in enumerate(rule.counts):
        rows = min(rule.rows, p - block * rule.rows)
        counts += [kept * (row + 1) // rows - kept * row // rows for row in range(rows)]
    columns = [torch.arange(count) * q // max(count, 1) for count in counts]
    return torch.cat([torch.tensor(counts), *columns])
