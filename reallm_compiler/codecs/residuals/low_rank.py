"""Low-rank residual R = L1 L2: truncated SVD, or zero, stored in 8, 16 or 32 bits.

The singular values are split evenly, L1 = U sqrt(S) and L2 = sqrt(S) V^T (LQ-LoRA). Small
matrices get an exact SVD, large ones a randomised one (Halko, Martinsson and Tropp: a sketch
with a few columns more than the rank, sharpened by power iterations), whose memory is a few
thin matrices. Signs are fixed, so that the same matrix gives the same factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ResidualCodec, ResidualTerm, Shape
from reallm_compiler.codecs.numerics.codebooks import INT8_LEVELS
from reallm_compiler.codecs.numerics.gram import cholesky, damped, diagonal, full
from reallm_compiler.codecs.numerics.numbers import norm, stored, unit
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.codecs.windows import StoredFactors
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import LowRank
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.low_rank import (
    EXACT_BELOW,
    OVERSAMPLING,
    POWER_ITERATIONS,
    rank_of,
)

HINT = "store the residual with `dtype: float32` or `bfloat16`"

TINY = 1e-300

DAMPING = 0.01
"""What is added to the diagonal of the metric of the inputs, relative to its mean."""


def encode(
    params: LowRank,
    weight: Tensor,
    generator: torch.Generator,
    size: float | None = None,
    metric: Metric | None = None,
) -> Sections:
    """Sections of the factors of a matrix [p, q].

    Args:
        params: the residual stage; `fit: zero` ignores the weight's values.
        weight: what the residual is to follow.
        generator: on the CPU; draws the sketch, or L2 of `fit: zero`.
        size: norm of the whole matrix, of which `weight` may be a small rest.
        metric: in which the factors follow the matrix; None for that of weights.

    Raises:
        CodecError: the stored type is too narrow for a factor.
    """
    p, q = weight.shape
    rank = rank_of(params, (p, q))
    if params.fit == "zero":
        # LoRA's start: the product is zero and L2 has the deviation of a Kaiming-uniform A.
        left = weight.new_zeros(p, rank)
        right = torch.randn(rank, q, generator=generator, dtype=torch.float32)
        right = right.to(weight).div_(math.sqrt(3 * q))
    elif metric is None:
        left, right = truncated_svd(weight, rank, generator)
    elif metric.outputs is None:
        left, right = weighted_svd(weight, rank, metric.inputs, generator)
    else:
        rows, columns = _roots(metric.outputs).to(weight), _roots(metric.inputs).to(weight)
        left, right = truncated_svd(rows[:, None] * weight * columns, rank, generator)
        left, right = left / rows[:, None], right / columns
    return store(params, left, right, size)


def store(params: LowRank, left: Tensor, right: Tensor, size: float | None = None) -> Sections:
    """Sections of the factors L1 [p, r] and L2 [r, q], rounded to their stored type.

    Args:
        params: the residual stage, of which the type counts.
        left, right: the factors.
        size: norm of the matrix, against which what their product loses is held; each factor is
            held against itself when None.

    Raises:
        CodecError: that type is too narrow for a factor.
    """
    size1 = size2 = None
    if size is not None:  # an error in one factor is multiplied by the other
        size1, size2 = size / max(norm(right), TINY), size / max(norm(left), TINY)
    if params.dtype == "int8":
        codes1, scales1 = _int8(left, 0, size1, "l1_scales")
        codes2, scales2 = _int8(right, 1, size2, "l2_scales")
        return {"l1": codes1, "l2": codes2, "l1_scales": scales1, "l2_scales": scales2}
    dtype = TORCH_DTYPES[DTYPES[params.dtype]]
    return {
        "l1": stored(left, dtype, "factors l1", HINT, size=size1),
        "l2": stored(right, dtype, "factors l2", HINT, size=size2),
    }


def decode(
    params: LowRank, sections: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The factors L1 [p, r] and L2 [r, q] in the precision `dtype`."""
    left, right = sections["l1"].to(dtype), sections["l2"].to(dtype)
    if params.dtype == "int8":
        left = left * sections["l1_scales"].to(dtype)
        right = right * sections["l2_scales"].to(dtype)[:, None]
    return left, right


class LowRankTerm(ResidualTerm):
    """R = L1 L2.

    Args:
        left, right: L1 [p, r] and L2 [r, q].
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._left = left
        self._right = right

    def add_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of R added to `rows` [n, q] in place."""
        return rows.addmm_(self._left[first : first + len(rows)], self._right)

    def taken_from(self, weight: Tensor) -> Tensor:
        """`weight` [p, q] less R, a fresh tensor."""
        return torch.addmm(weight, self._left, self._right, alpha=-1)

    def add_product_(self, x: Tensor, y: Tensor) -> Tensor:
        """x R^T of activations x [n, q] added to `y` [n, p] in place."""
        return y.addmm_(x @ self._right.t(), self._left.t())

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """L1 and L2."""
        return self._left, self._right


class LowRankCodec(ResidualCodec[LowRank]):
    """Factors L1 and L2."""

    def metric(self, params: LowRank, statistics: MatrixStatistics) -> Metric | None:
        """That of the inputs; or with `fisher` diagonals on both sides.

        E[(g_i x_j)^2] is the Fisher information of weight (i, j). Its means over columns and over
        rows are E[|x|^2 g_i^2] / q and E[|g|^2 x_j^2] / p, of which only ratios count.

        Raises:
            CodecError: the statistics have no gradients, and `fisher` needs them.
        """
        if params.metric == "inputs":
            return Metric(inputs=statistics.inputs)
        if params.metric == "weights":
            return None
        if statistics.weighted_inputs is None or statistics.weighted_outputs is None:
            raise CodecError(
                "a residual with `metric: fisher` needs gradients, and the statistics hold none",
                hint="measure them without `--no-gradients`, or use `metric: inputs`",
            )
        return Metric(
            inputs=diagonal(statistics.weighted_inputs),
            outputs=diagonal(statistics.weighted_outputs),
        )

    def encode(
        self,
        params: LowRank,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        metric: Metric | None = None,
    ) -> Sections:
        """Sections of the factors; see `encode`."""
        return encode(params, weight, generator, norm(whole), metric)

    def decoder(
        self, params: LowRank, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> LowRankTerm | None:
        """The product of the stored factors; None if `sections` hold none."""
        return LowRankTerm(*decode(params, sections, dtype)) if "l1" in sections else None

    def factors(self, params: LowRank, sections: Mapping[str, Tensor]) -> StoredFactors | None:
        """L1 and L2, and of int8 the products of their scales."""
        if "l1" not in sections:
            return None
        scales = None
        if params.dtype == "int8":
            scales = sections["l1_scales"].float() * sections["l2_scales"].float()
        return StoredFactors(left=sections["l1"], right=sections["l2"], scales=scales)


def truncated_svd(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best factors L1 [p, r], L2 [r, q] by Frobenius error, nearly so for large matrices.

    Args:
        weight: [p, q], finite.
        rank: r, at most min(p, q).
        generator: draws the sketch of the randomised method, on the CPU.
    """
    one = unit(weight)
    if one != 1:
        weight = weight / one
    least = min(weight.shape)
    if least <= EXACT_BELOW or 3 * (rank + OVERSAMPLING) >= least:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, vt = _randomised_svd(weight, rank, generator)
    # A singular pair is known up to a common sign: the largest entry of u is made positive.
    peak = u.gather(0, u.abs().argmax(dim=0, keepdim=True))  # [1, r]
    root = s.clamp(min=0).sqrt() * math.sqrt(one) * torch.where(peak < 0, -1.0, 1.0)[0]
    return u * root, root.abs()[:, None] * (vt * root.sign()[:, None])


def weighted_svd(
    weight: Tensor, rank: int, gram: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The factors L1 [p, r], L2 [r, q] that make tr((W - L1 L2) H (W - L1 L2)^T) least.

    With H = C C^T these are the factors of W C, the second one times C^-1.

    Args:
        weight: [p, q], finite.
        rank: r, at most min(p, q).
        gram: H [q, q], symmetric, or its diagonal [q]; it is damped by `DAMPING`.
        generator: draws the sketch of the randomised method, on the CPU.
    """
    root = cholesky(damped(full(gram), DAMPING)).to(weight.device)  # C [q, q], lower triangular
    moved = (weight.to(torch.float64) @ root).to(weight.dtype)
    left, right = truncated_svd(moved, rank, generator)
    back = torch.linalg.solve_triangular(root, right.to(torch.float64), upper=False, left=False)
    return left, back.to(weight.dtype)


def _roots(diagonal: Tensor) -> Tensor:
    """float64 [n]: roots of a diagonal of a metric, damped by `DAMPING`, of mean square 1."""
    values = diagonal.to(torch.float64)
    mean = values.mean()
    if not float(mean) > 0:
        return torch.ones_like(values)
    return ((values / mean + DAMPING) / (1 + DAMPING)).sqrt()


def _randomised_svd(
    weight: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    q = weight.shape[1]
    width = rank + OVERSAMPLING
    sketch = torch.randn(q, width, generator=generator, dtype=torch.float32).to(weight)
    basis = _orthonormal(weight @ sketch)  # [p, width]
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(weight.t() @ basis)  # [q, width]
        basis = _orthonormal(weight @ basis)  # [p, width]
    small = basis.t() @ weight  # [width, q]
    u, s, vt = torch.linalg.svd(small, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank]


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _int8(factor: Tensor, dim: int, size: float | None, name: str) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes of a factor, and float16 scales over `dim`."""
    exact = factor.abs().amax(dim) / INT8_LEVELS
    # A scale that is wrong by 1 moves its codes by their own length.
    lengths = torch.linalg.vector_norm(factor, dim=dim, dtype=torch.float64)
    cost = lengths / torch.where(exact > 0, exact, 1.0)
    scales = stored(exact, torch.float16, name, HINT, cost=cost, size=size)
    step = scales.to(factor.dtype).unsqueeze(dim)
    codes = torch.where(step > 0, factor / step, 0.0).round_()
    return codes.clamp_(-INT8_LEVELS, INT8_LEVELS).to(torch.int8).contiguous(), scales
