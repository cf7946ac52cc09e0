"""DoRA: each row of the sum V + L1 L2 is stored with a gain g by which it is multiplied.

For a row W_i and its reconstruction W^_i, the gain that brings the error of the row to its least
is

    g_i = <W_i, W^_i> / ||W^_i||^2,   decoded row = g_i W^_i

so that the row is never farther from W_i than W^_i was, up to float16's rounding of g. DoRA (Liu
et al. 2024, equation 5) stores the magnitude m_i = g_i ||W^_i|| instead; the gain has the same
bytes and needs no norm, and so no decoded row, when a model is loaded. Tuning and peft convert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import numbers

PANEL = 1 << 22
"""Weights of a panel of rows whose norms are computed at once."""


def gain(weight: Tensor, decoded: Tensor) -> Tensor:
    """Gains g [n] of the rows of `decoded` [n, q], in its type; 0 for a row of zeros.

    A row that points away from its weight gets 0: a gain changes no sign.
    """
    one = numbers.unit(decoded)
    if one != 1:
        weight, decoded = weight / one, decoded / one
    norm = torch.linalg.vector_norm(decoded, dim=1)
    divisor = torch.where(norm > 0, norm, torch.inf)
    along = (weight * decoded).div_(divisor[:, None]).sum(1)
    return along.clamp_(min=0).div_(divisor)


def stored(values: Tensor) -> Tensor:
    """Gains [p] as float16.

    Raises:
        CodecError: float16 is too narrow for them.
    """
    hint = "switch `dora` off for this matrix"
    return numbers.stored(values, torch.float16, "gains of rows", hint)


def row_norms(
    coded: Tensor, left: Tensor | None, right: Tensor | None, columns: Tensor | None = None
) -> Tensor:
    """||V c + L1 L2|| of each row, float32 [p], over panels: no second matrix of full size is made.

    Args:
        coded: V [p, q], of any floating type; of a packed one a panel at a time is decoded.
        left, right: L1 [p, r] and L2 [r, q], float32; None for V alone.
        columns: c [q], what columns of V are multiplied by; None for ones.
    """
    step = max(1, PANEL // coded.shape[1])
    norms = []
    for first in range(0, len(coded), step):
        rows = coded[first : first + step].to(torch.float32, copy=True)
        if columns is not None:
            rows *= columns
        if left is not None and right is not None:
            rows.addmm_(left[first : first + step], right)
        norms.append(torch.linalg.vector_norm(rows, dim=1))
    return torch.cat(norms)


def gain_of(magnitude: Tensor, norms: Tensor) -> Tensor:
    """g = m / ||V + L1 L2|| [p] of DoRA's magnitudes m [p]; 0 where the row is zero."""
    return magnitude / torch.where(norms > 0, norms, torch.inf)
