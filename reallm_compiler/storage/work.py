"""The operations that coding consists of, as size laws count them.

A count is what time grows with, from parameters and shape alone: constants are left to the rate
that is measured for each operation (`reallm budget --time`). A kind whose time grows otherwise
names an operation of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WEIGHTS = "weights"
"""Weights that are read, changed or written, one after the other."""

TRIALS = "trials"
"""Weights that are scaled, coded, decoded and compared in a search for their scales."""

PRODUCTS = "products"
"""Multiply-accumulates of matrix products in float32."""

DOUBLE_PRODUCTS = "double_products"
"""Multiply-accumulates of products, factors and inverses of matrices in float64."""

DECOMPOSITIONS = "decompositions"
"""Multiply-accumulates of singular value decompositions, by p q min(p, q)."""

CODEWORDS = "codewords"
"""Multiply-accumulates of vectors with the codewords of a codebook."""

SUMS = "sums"
"""The same, of vectors with codewords that are added up."""

LATTICE = "lattice"
"""Weights whose vectors become points of a lattice."""

PATHS = "paths"
"""Steps of the paths of a trellis search, one for each weight and path."""

COLUMNS = "columns"
"""Weights that are coded column by column, with errors carried on."""

SWEEPS = "sweeps"
"""Multiply-accumulates of sweeps in which each code is chosen again."""

NEIGHBOURS = "neighbours"
"""Columns that are compared in search of the nearest one."""

TRAINING = "training"
"""Floating-point operations of trained autoencoders."""

MATRICES = "matrices"
"""Matrices, for what each costs however small it is."""

MODEL = "model"
"""Multiply-accumulates of a model's layers, forward or back to their inputs, in float32."""

MOMENTS = "moments"
"""Multiply-accumulates of tokens added to matrices of second moments."""

BYTES = "bytes"
"""Bytes that are read or written, and digested."""

PROCESSES = "processes"
"""Processes that are started."""

Work = Mapping[str, int]
"""Counts by operation."""


def total(parts: Iterable[Work]) -> dict[str, int]:
    """The sum of counts, operation by operation."""
    found: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            if count:
                found[name] = found.get(name, 0) + count
    return found


def times(factor: int, work: Work) -> dict[str, int]:
    """All counts so many times."""
    return {name: factor * count for name, count in work.items()}
