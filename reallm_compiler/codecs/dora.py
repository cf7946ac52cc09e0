"""DoRA without data: each output row is stored with a magnitude and rescaled to it.

For a row W_i and its reconstruction W^_i, the gain that brings the error of the row to its least
is <W_i, W^_i> / ||W^_i||^2. The magnitude is that gain times the norm,

    m_i = <W_i, W^_i> / ||W^_i||,   decoded row = m_i W^_i / ||W^_i||

so that the rescaled row is never farther from W_i than W^_i was, up to float16's rounding of m.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs import numbers


def magnitude(weight: Tensor, decoded: Tensor) -> Tensor:
    """Magnitudes m [n] of the rows of `decoded` [n, q], in its type; 0 for a row of zeros.

    A row that points away from its weight gets 0: a magnitude is a norm.
    """
    one = numbers.unit(decoded)
    if one != 1:
        weight, decoded = weight / one, decoded / one
    norm = torch.linalg.vector_norm(decoded, dim=1)
    along = (weight * decoded).div_(_divisor(norm)[:, None]).sum(1)
    return along.clamp_(min=0).mul_(one)


def stored(values: Tensor) -> Tensor:
    """Magnitudes [p] as float16.

    Raises:
        CodecError: float16 is too narrow for them.
    """
    hint = "switch `dora` off for this matrix"
    return numbers.stored(values, torch.float16, "magnitudes of rows", hint)


def rescale_(rows: Tensor, magnitudes: Tensor) -> Tensor:
    """Rescales rows [n, q] in place to the norms `magnitudes` [n]; rows of zeros stay zero."""
    norm = torch.linalg.vector_norm(rows, dim=1)
    gain = magnitudes.to(rows.dtype) / _divisor(norm)
    return rows.mul_(gain[:, None])


def _divisor(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm, torch.inf)
