"""Sparse residual: a few weights, the outliers, kept as numbers beside the codes.

Which weights are kept is decided by a score, the largest first, before anything is coded:

    magnitude       |w|
    gram            w^2 H_jj                 what losing the weight alone costs
    hessian         w^2 / [H^-1]_jj          the same, after the others have made up for it (OBS)
    leave_one_out   what the group of the weight loses less by rounding without it (SpQR)

with H the Gram matrix of the inputs. The values are set anew once the rest is coded: what brings
tr(E H E^T) to its least with codes and positions as they are, which is the exact weight for H = I.

Sources: Dettmers et al. 2023 (SpQR), sections 3.2 and 4; the rules by H after Hassibi and Stork
1993 (optimal brain surgeon).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ResidualCodec, ResidualTerm, Shape
from reallm_compiler.codecs.numerics.gram import cholesky, damped, factor, full
from reallm_compiler.codecs.numerics.numbers import norm, stored
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.stages import Sparse
from reallm_compiler.storage import sparse as law
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.units import ceil_div

HINT = "store the outliers with `dtype: float32` or `bfloat16`"

DAMPING = 0.01
"""What is added to the diagonal of the metric of the inputs, relative to its mean."""

PIECE = 1 << 20
"""Weights whose groups are rounded in one step."""

MOST = 256
"""Kept weights of a row whose values are fitted together; more are taken as they are."""

SOLVED = 1 << 22
"""Numbers of the small systems that are solved in one step."""


class SparseTerm(ResidualTerm):
    """A few weights of a matrix [p, q].

    Args:
        counts: int64 [p], how many weights each row keeps.
        columns: int64 [K], their columns, row after row.
        values: [K], the weights.
    """

    def __init__(self, counts: Tensor, columns: Tensor, values: Tensor) -> None:
        self.counts = counts
        self.columns = columns
        self.values = values
        start = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=start[1:])
        self._start = start.cpu().tolist()

    def positions(self, first: int, last: int) -> tuple[Tensor, Tensor, slice]:
        """Rows, from `first`, and columns of the weights in rows [first, last); which these are."""
        span = slice(self._start[first], self._start[last])
        rows = torch.arange(last - first, device=self.counts.device)
        return rows.repeat_interleave(self.counts[first:last]), self.columns[span], span

    def add_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of R added to `rows` [n, q] in place."""
        row, column, span = self.positions(first, first + len(rows))
        rows[row, column] += self.values[span]
        return rows

    def add_product_(self, x: Tensor, y: Tensor) -> Tensor:
        """x R^T of activations x [n, q] added to `y` [n, p] in place."""
        if len(x) * len(self.values) > PIECE or not len(self.values):
            return super().add_product_(x, y)
        products = x.index_select(1, self.columns).mul_(self.values).t().contiguous()
        return y.add_(torch.segment_reduce(products, "sum", lengths=self.counts).t())

    def taken_from(self, weight: Tensor) -> Tensor:
        """`weight` [p, q] less R, a fresh tensor."""
        rest = weight.clone()
        row, column, _ = self.positions(0, len(weight))
        rest[row, column] -= self.values
        return rest


class SparseCodec(ResidualCodec[Sparse]):
    """The weights of the largest scores."""

    def metric(self, params: Sparse, statistics: MatrixStatistics) -> Metric | None:
        """That of the inputs."""
        return Metric(inputs=statistics.inputs)

    def encode(
        self,
        params: Sparse,
        weight: Tensor,
        generator: torch.Generator,
        whole: Tensor,
        metric: Metric | None = None,
    ) -> Sections:
        """The outliers of `weight`.

        Raises:
            CodecError: the stored type is too narrow for them.
        """
        shape = (weight.shape[0], weight.shape[1])
        score = _scores(params, weight, metric)
        if law.most_in_a_row(params, shape) < shape[1]:  # one weight of a row is never kept
            score.scatter_(1, score.argmin(1, keepdim=True), -1.0)
        kept = torch.zeros(shape, dtype=torch.bool, device=weight.device)
        step = law.block_rows(params, shape[0])
        for block, count in enumerate(law.counts(params, shape)):
            rows = slice(block * step, (block + 1) * step)
            order = score[rows].reshape(-1).sort(descending=True, stable=True).indices
            kept[rows].view(-1)[order[:count]] = True
        counts = kept.sum(1)
        row, column = kept.nonzero(as_tuple=True)
        codes = torch.cat([counts, column])
        return {
            "sparse_values": _stored(params, weight[row, column], whole),
            "sparse_index": pack(codes, law.code_bits(params, shape)),
        }

    def refined(
        self,
        params: Sparse,
        sections: Mapping[str, Tensor],
        rest: Tensor,
        whole: Tensor,
        metric: Metric | None,
    ) -> Sections:
        """Values of the same weights that make the error of `rest` least.

        Where errors of rows depend on each other the values stay as they are.
        """
        if metric is not None and metric.outputs is not None:
            return dict(sections)
        shape = (rest.shape[0], rest.shape[1])
        term = self.decoder(params, shape, sections, rest.dtype)
        assert term is not None
        values = _fitted(term, rest, None if metric is None else metric.inputs)
        return {**sections, "sparse_values": _stored(params, values, whole)}

    def decoder(
        self, params: Sparse, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> SparseTerm | None:
        """The stored weights; None if `sections` hold none."""
        if "sparse_index" not in sections:
            return None
        values = sections["sparse_values"].to(dtype)
        bits, count = law.code_bits(params, shape), shape[0] + len(values)
        codes = unpack(sections["sparse_index"], bits, count).to(torch.int64)
        return SparseTerm(codes[: shape[0]], codes[shape[0] :], values)


def _stored(params: Sparse, values: Tensor, whole: Tensor) -> Tensor:
    dtype = TORCH_DTYPES[DTYPES[params.dtype]]
    return stored(values, dtype, "outliers", HINT, size=norm(whole))


def _scores(params: Sparse, weight: Tensor, metric: Metric | None) -> Tensor:
    """What keeping each weight [p, q] saves, at least 0; without a metric its magnitude."""
    if params.by == "magnitude" or metric is None:
        return weight.abs()
    if params.by == "leave_one_out":
        gram = damped(full(metric.inputs), DAMPING)
        return leave_one_out(weight, factor(gram)[1], params.group, params.bits)
    if params.by == "gram":
        gram = metric.inputs
        cost = gram if gram.dim() == 1 else gram.diagonal()
    else:
        root = cholesky(damped(full(metric.inputs), DAMPING))
        cost = 1 / torch.cholesky_inverse(root).diagonal()
    size = weight.abs()
    return size * cost.clamp(min=0).sqrt().to(size)  # the root of the score: no square overflows


def leave_one_out(weight: Tensor, cost: Tensor, group: int, bits: int) -> Tensor:
    """What rounding loses less in the group of each weight [p, q] if the weight is left out.

    A group is `group` consecutive weights of a row, rounded to 2^bits levels between its least and
    its largest weight; a shorter last group stands alone.

    Args:
        weight: [p, q].
        cost: [q], what the square of an error in each column costs.
        group: weights of a group.
        bits: of a code.
    """
    p, q = weight.shape
    cost = cost.to(weight)
    score = torch.zeros_like(weight)
    whole = q // group * group
    step = max(1, PIECE // (q * group))
    for first in range(0, p, step):
        rows = slice(first, first + step)
        if whole:
            parts = weight[rows, :whole].reshape(-1, whole // group, group)
            found = _left_out(parts, cost[:whole].view(-1, group), bits)
            score[rows, :whole] = found.flatten(1)
        if q - whole > 1:
            score[rows, whole:] = _left_out(weight[rows, None, whole:], cost[None, whole:], bits)[
                :, 0
            ]
    return score.clamp_(min=0)


def _left_out(parts: Tensor, cost: Tensor, bits: int) -> Tensor:
    """The score of each weight of groups [n, groups, g]; cost [groups, g]."""
    low, high = parts.topk(2, -1, largest=False), parts.topk(2, -1)
    size = parts.shape[-1]
    one = torch.arange(size, device=parts.device)
    # The range of a group without weight i: its second least (largest) weight, if i is the least.
    least = torch.where(one == low.indices[..., :1], low.values[..., 1:], low.values[..., :1])
    most = torch.where(one == high.indices[..., :1], high.values[..., 1:], high.values[..., :1])
    others = ~torch.eye(size, dtype=torch.bool, device=parts.device)
    # [n, groups, i, g]: errors of the group rounded within the range without weight i
    without = _errors(parts[..., None, :], least[..., None], most[..., None], bits) * cost[:, None]
    with_all = _errors(parts, low.values[..., :1], high.values[..., :1], bits) * cost
    left: Tensor = with_all.sum(-1, keepdim=True) - (without * others).sum(-1)
    return left


def _errors(values: Tensor, least: Tensor, most: Tensor, bits: int) -> Tensor:
    """Squares of what rounding to 2^bits levels from `least` to `most` leaves."""
    step = (most - least) / (2**bits - 1)
    safe = torch.where(step > 0, step, 1.0)
    code = ((values - least) / safe).round_().clamp_(0, 2**bits - 1)
    wrong: Tensor = values - (least + code * step)
    return wrong.square_()


def _fitted(term: SparseTerm, rest: Tensor, gram: Tensor | None) -> Tensor:
    """Values [K] of kept weights that make the error E of `rest` [p, q] least: tr(E H E^T).

    For the kept columns S of a row e they are the solution of H_SS v = (e H)_S.
    """
    row, column, _ = term.positions(0, len(rest))
    values = rest[row, column]
    if gram is None or gram.dim() == 1:
        return values
    gram = damped(gram, DAMPING).to(rest.device)
    most = int(term.counts.clamp(max=MOST).max())
    if not most:
        return values
    step = max(1, min(SOLVED // (most * most), ceil_div(PIECE, rest.shape[1])))
    for first in range(0, len(rest), step):
        last = min(first + step, len(rest))
        _solve(term, rest, gram, first, last, values)
    return values


def _solve(
    term: SparseTerm, rest: Tensor, gram: Tensor, first: int, last: int, values: Tensor
) -> None:
    """The values of rows [first, last) that keep at most `MOST` weights, in their place."""
    row, column, span = term.positions(first, last)
    counts = term.counts[first:last]
    width = int(counts.clamp(max=MOST).max())
    begin = counts.cumsum(0) - counts
    inner = torch.arange(len(row), device=row.device) - begin[row]
    few = counts[row] <= MOST
    row, inner, column = row[few], inner[few], column[few]
    if not len(row):
        return
    moved = rest[first:last].to(torch.float64) @ gram  # [n, q]
    index = torch.zeros(last - first, width, dtype=torch.int64, device=row.device)
    index[row, inner] = column
    there = torch.zeros(last - first, width, dtype=torch.bool, device=row.device)
    there[row, inner] = True
    both = there[:, :, None] & there[:, None, :]
    system = torch.where(both, gram[index[:, :, None], index[:, None, :]], 0.0)  # [n, k, k]
    system.diagonal(dim1=1, dim2=2).masked_fill_(~there, 1.0)
    wanted = moved.gather(1, index) * there
    root = torch.linalg.cholesky(system)
    solved = torch.cholesky_solve(wanted[:, :, None], root)[:, :, 0]
    values[span] = values[span].masked_scatter(few, solved[row, inner].to(values.dtype))
