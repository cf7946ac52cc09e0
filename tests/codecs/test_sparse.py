"""The sparse residual: which weights are kept, their values, and lists of residuals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.gram import damped, factor
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.residuals.sparse import DAMPING, SparseTerm, leave_one_out
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.conftest import RAGGED
from tests.codecs.test_feedback import correlated, statistics

P, Q = 24, 40
CODED = {"scales": {"kind": "minmax", "block": 20}, "quantizer": {"kind": "uniform", "bits": 2}}
FEEDBACK = {"rounding": {"kind": "feedback", "sides": "input"}}


def planned(residual: Any, **stages: Any) -> MatrixPlan:
    return MatrixPlan.model_validate({"residual": residual, **CODED, **stages})


def sparse(fraction: Any = "1/10", **fields: Any) -> dict[str, Any]:
    return {"kind": "sparse", "fraction": fraction, **fields}


def coded(plan: MatrixPlan, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The matrix as decoded, and its sections."""
    given = statistics() if plan.needs_statistics else None
    found = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given).sections
    shape = (weight.shape[0], weight.shape[1])
    return decode_matrix(plan, shape, "f32", found, dtype=torch.float32), found


def kept(plan: MatrixPlan, shape: tuple[int, int], sections: dict[str, Tensor]) -> Tensor:
    """bool [p, q]: the weights that are kept."""
    (stage,) = (stage for stage in plan.residual if not stage.factored)
    term: SparseTerm = codec_of(stage).decoder(stage, shape, sections, torch.float32)
    row, column, _ = term.positions(0, shape[0])
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[row, column] = True
    return mask


@pytest.mark.parametrize("rows", ["all", 4])
@pytest.mark.parametrize("shape", RAGGED)
def test_battery(shape, rows, gaussian, check_codec):
    check_codec(planned(sparse(rows=rows)), gaussian(*shape))


@pytest.mark.parametrize("columns", [7, 8])
def test_with_all_weights_kept_nothing_is_lost(columns, gaussian):
    weight = gaussian(9, columns)
    for fields in ({"dtype": "float32"}, {"by": "gram", "dtype": "float32"}):
        plan = planned(sparse(1, **fields))
        given = statistics(inputs=correlated(columns, 1))
        found = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given)
        assert found.relative_error < 1e-7


def test_every_block_of_rows_keeps_its_share(gaussian):
    weight = gaussian(10, 32)
    weight[0] *= 100
    plan = planned(sparse("1/16", rows=4))
    _, sections = coded(plan, weight)
    counts = kept(plan, (10, 32), sections).sum(1)
    assert [int(counts[first : first + 4].sum()) for first in (0, 4, 8)] == [8, 8, 4]
    whole = planned(sparse("1/16"))
    assert int(kept(whole, (10, 32), coded(whole, weight)[1])[0].sum()) == 20


def test_a_code_of_a_full_row_costs_a_bit_only_where_a_row_can_be_full():
    def bits(fraction: str) -> str:
        plan = planned(sparse(fraction))
        return next(s.dtype for s in layout_of(plan, (4, 64), "f32").sections if "index" in s.role)

    assert (bits("1/2"), bits("63/64"), bits("1")) == ("b6", "b6", "b7")


def test_a_row_is_not_filled_where_its_count_would_not_fit(gaussian):
    weight = gaussian(4, 8)
    weight[1] *= 1000
    plan = planned(sparse("1/4"))
    mask = kept(plan, (4, 8), coded(plan, weight)[1])
    assert int(mask.sum()) == 8
    assert int(mask[1].sum()) == 7


def test_kept_weights_are_exact_and_ranges_shrink(gaussian):
    weight = gaussian(P, Q)
    weight[::3, ::7] *= 20
    plain, _ = coded(planned([]), weight)
    plan = planned(sparse())
    found, sections = coded(plan, weight)
    mask = kept(plan, (P, Q), sections)
    assert torch.allclose(found[mask], weight[mask], rtol=1e-3)
    assert (found - weight).norm() < 0.2 * (plain - weight).norm()


@pytest.mark.parametrize("by", ["magnitude", "gram", "hessian", "leave_one_out"])
def test_the_largest_scores_are_kept(by, gaussian):
    """By each rule's own formula, weight by weight."""
    weight, h = gaussian(P, Q), damped(statistics().inputs, DAMPING)
    inverse = torch.linalg.inv(h)
    cost = {
        "magnitude": torch.ones(Q),
        "gram": statistics().inputs.diagonal(),
        "hessian": 1 / inverse.diagonal(),
        "leave_one_out": factor(h)[1],
    }[by].double()
    if by == "leave_one_out":
        score = slow_leave_one_out(weight.double(), cost, 16, 3)
    else:
        score = weight.double().square() * cost
    plan = planned(sparse("1/20", by=by))
    mask = kept(plan, (P, Q), coded(plan, weight)[1])
    assert int(mask.sum()) == P * Q // 20
    assert float(score[mask].min()) > 0.999 * float(score[~mask].max())


def slow_leave_one_out(weight: Tensor, cost: Tensor, group: int, bits: int) -> Tensor:
    def loss(values: Tensor, given: Tensor) -> float:
        low, step = values.min(), (values.max() - values.min()) / (2**bits - 1)
        codes = ((values - low) / step).round()
        return float(((values - low - codes * step).square() * given).sum())

    score = torch.zeros_like(weight)
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], group):
            part = weight[row, first : first + group]
            given = cost[first : first + group]
            for index in range(len(part)):
                others = torch.arange(len(part)) != index
                score[row, first + index] = loss(part, given) - loss(part[others], given[others])
    return score


def test_the_rule_of_spqr_on_a_group_with_one_outlier():
    weight = torch.linspace(-1, 1, 16).repeat(2, 1)
    weight[1, 5] = 30
    score = leave_one_out(weight, torch.ones(16), 16, 3)
    assert int(score[1].argmax()) == 5
    assert float(score[1].max()) > 20 * float(score[0].max())


def test_values_are_best_for_the_codes_after_feedback(gaussian):
    """Of each row: least squares over its kept weights, given codes that stay as they are."""
    weight = gaussian(P, Q)
    plan = planned(sparse(dtype="float32", by="hessian"), **FEEDBACK)
    found, sections = coded(plan, weight)
    mask = kept(plan, (P, Q), sections)
    root = torch.linalg.cholesky(damped(statistics().inputs, DAMPING))
    for row in range(P):
        error = (weight - found)[row].double()
        moves = root[mask[row]]  # what a change of each kept weight does: its row of C, H = C C^T
        better = torch.linalg.lstsq(moves.t(), error @ root).solution
        assert float(better.norm()) < 1e-4 * float(weight[row].norm())


@pytest.mark.parametrize("by", ["gram", "hessian", "leave_one_out"])
def test_outliers_pay_with_feedback(by, gaussian):
    weight = gaussian(P, Q)
    weight[::5, ::9] *= 12
    h = damped(statistics().inputs, 0.03)

    def cost(plan: MatrixPlan) -> float:
        error = (coded(plan, weight)[0] - weight).double()
        return float(((error @ h) * error).sum())

    assert cost(planned(sparse("1/20", by=by), **FEEDBACK)) < 0.5 * cost(planned([], **FEEDBACK))


@pytest.mark.parametrize("order", ["low rank first", "outliers first"])
def test_a_list_adds_up(order, gaussian):
    weight = gaussian(P, Q) + 3 * gaussian(P, 1) @ gaussian(1, Q, seed=1)
    weight[2, 3] = 50
    kinds = [{"kind": "low_rank", "rank": 1, "dtype": "float32"}, sparse("1/100")]
    plan = planned(kinds if order == "low rank first" else kinds[::-1])
    found, sections = coded(plan, weight)
    bare = {role: values for role, values in sections.items() if not role.startswith("sparse")}
    fixed = plan.with_factors(None, dora=False)
    without = decode_matrix(
        fixed,
        (P, Q),
        "f32",
        {role: values for role, values in sections.items() if role not in ("l1", "l2")},
        dtype=torch.float32,
    )
    assert torch.allclose(without + sections["l1"] @ sections["l2"], found, atol=1e-5)
    alone = planned(kinds[0])
    less = decode_matrix(alone, (P, Q), "f32", bare, dtype=torch.float32)
    mask = kept(plan, (P, Q), sections)
    assert torch.equal(less[~mask], found[~mask])
    assert float((found - weight).norm()) < float((coded(planned([]), weight)[0] - weight).norm())
    assert torch.allclose(found[2, 3], weight[2, 3], rtol=1e-2)


def test_one_kind_and_nothing_are_lists_too():
    one = planned(sparse())
    assert planned([sparse()]) == one
    assert planned({"kind": "none"}) == planned([]) == planned([{"kind": "none"}])
    with pytest.raises(ValueError, match="residual can stand in the list once"):
        planned([sparse(), sparse("1/5")])
    assert layout_of(one, (4, 70000), "f32").refusal is not None
