"""Codes changed again after rounding with feedback: coordinate descent over groups of columns.

With all other columns as they are, the error E of a row costs least where the columns of a group k
decode to

    target_k = v_k + (E H)_k H_kk^-1,      then an error of that target costs its square in H_kk

so each group is coded anew, from the first to the last, and a new code is kept where it costs less
than the old one. Sweeps end when one gains little. For single columns this is what QuIP# does after
LDLQ; for vectors that are sums of codewords it is AQLM's search in the metric of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import LAZY, ColumnCoder
from reallm_compiler.codecs.numerics.gram import cholesky

SETTLED = 1e-3
"""Relative gain of a sweep below which it was the last one."""


@torch.inference_mode()
def descend(
    coder: ColumnCoder,
    wanted: Tensor,
    decoded: Tensor,
    rows: slice,
    scales: Tensor,
    zeros: Tensor | None,
    gram: Tensor,
    sweeps: int,
) -> None:
    """Changes the codes of rows where that lowers their cost e H e^T.

    Args:
        coder: which holds the codes.
        wanted: float32 [n, q], the rows in the coded order.
        decoded: [n, q], what their codes stand for; changed in its place.
        rows: first and last of them.
        scales: [n, q] or [1, q], what normalized values are multiplied by.
        zeros: of the same shape, what is added to them then; None for zeros.
        gram: H [q, q] in the coded order, symmetric and positive definite.
        sweeps: how often each group is coded anew, at most.
    """
    columns, step = wanted.shape[1], coder.step
    groups = [slice(first, min(first + step, columns)) for first in range(0, columns, step)]
    roots = [cholesky(gram[k, k].to(torch.float64)) for k in groups]
    inverses = [torch.cholesky_inverse(root).to(torch.float32) for root in roots]
    steps = list(zip(groups, [root.to(torch.float32) for root in roots], inverses, strict=True))
    together = max(LAZY // step, 1)
    gram = gram.to(torch.float32)
    divisor = torch.where(scales > 0, scales, torch.inf)
    last = float("inf")
    for _ in range(sweeps):
        errors = wanted - decoded  # anew: small differences do not add up
        cost = float(((errors @ gram) * errors).sum(dtype=torch.float64))
        if cost > (1 - SETTLED) * last:
            break
        last = cost
        for start in range(0, len(steps), together):
            block = steps[start : start + together]
            first, end = block[0][0].start, block[-1][0].stop
            moved = errors @ gram[:, first:end]  # (E H) of these columns [n, m]
            for k, root, inverse in block:
                inner = slice(k.start - first, k.stop - first)
                target = decoded[:, k] + moved[:, inner] @ inverse
                normal = target if zeros is None else target - zeros[:, k]
                values = coder.improve(normal / divisor[:, k], scales[:, k], root, k, rows)
                new = values * scales[:, k]
                new = new if zeros is None else new + zeros[:, k]
                change = decoded[:, k] - new
                moved.addmm_(change, gram[k, first:end])
                errors[:, k] += change
                decoded[:, k] = new
