"""Rounding with feedback: its identities, GPTQ by its own formulas, and that it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.gram import block_unit, damped, factor
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import AbsmaxScales, MatrixPlan

P, Q = 24, 40
ABSMAX = {"kind": "absmax", "per": "row"}
RMS = {"kind": "rms", "per": "tensor"}
UNIFORM: dict[str, Any] = {"scales": ABSMAX, "quantizer": {"kind": "uniform", "bits": 3}}
TRELLIS = {"kind": "trellis", "bits": "9/4", "state_bits": 6, "iterations": 3, "paths": 16}
PLANS: dict[str, dict[str, Any]] = {
    "uniform": UNIFORM,
    "normal_float": {
        "scales": {"kind": "absmax", "block": 20},
        "quantizer": {"kind": "normal_float", "bits": 3},
    },
    "minmax": {"scales": {"kind": "minmax", "per": "column"}, "quantizer": UNIFORM["quantizer"]},
    "vq rows": {"scales": RMS, "quantizer": {"kind": "vq", "bits": 2, "dim": 2}},
    "vq cols": {"scales": RMS, "quantizer": {"kind": "vq", "bits": 2, "dim": 2, "axis": "cols"}},
    "e8p": {"scales": RMS, "quantizer": {"kind": "e8p"}},
    "additive": {
        "scales": RMS,
        "quantizer": {"kind": "additive", "code_bits": 4, "dim": 4, "iterations": 5},
    },
    "trellis": {"scales": RMS, "quantizer": TRELLIS},
    "trellis, scales of columns": {
        "scales": {"kind": "rms", "per": "column"},
        "quantizer": TRELLIS,
    },
    "rotated": {
        "transform": [{"kind": "hadamard", "block": 8}],
        "scales": RMS,
        "quantizer": TRELLIS,
    },
    "ordered": {**UNIFORM, "permutation": {"kind": "nearest", "rows": 10}},
    "with factors": {**UNIFORM, "residual": {"kind": "low_rank", "rank": 2}},
    "numbers": {"quantizer": {"kind": "none", "dtype": "bfloat16"}},
}


def correlated(extent: int, seed: int) -> Tensor:
    """A Gram matrix [extent, extent] whose rows depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(extent, extent, generator=generator, dtype=torch.float64)
    mixing *= torch.logspace(0, -1.5, extent, dtype=torch.float64)
    return mixing @ mixing.t()


def statistics(
    inputs: Tensor | None = None, outputs: Tensor | None = None, gradients: bool = True
) -> MatrixStatistics:
    h = correlated(Q, 1) if inputs is None else inputs
    g = correlated(P, 2) if outputs is None else outputs
    return MatrixStatistics(
        inputs=h,
        weighted_inputs=h if gradients else None,
        outputs=g if gradients else None,
        weighted_outputs=g if gradients else None,
        energy=1.0 if gradients else None,
        mean_abs=torch.ones(Q),
        count=100,
    )


def planned(name: str, **rounding: Any) -> MatrixPlan:
    kind = {"rounding": {"kind": "feedback", **rounding}} if rounding else {}
    return MatrixPlan.model_validate({**PLANS[name], **kind})


def coded(plan: MatrixPlan, weight: Tensor, given: MatrixStatistics | None) -> Tensor:
    """The matrix as decoded."""
    encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given)
    shape = (weight.shape[0], weight.shape[1])
    return decode_matrix(plan, shape, "f32", encoded.sections, dtype=torch.float32)


def cost(error: Tensor, given: MatrixStatistics, *, both: bool) -> float:
    error = error.double()
    h = damped(given.inputs, 0.03)
    g = damped(given.weighted_outputs, 0.1) if both else torch.eye(len(error)).double()  # type: ignore[arg-type]
    return float(((g @ error) * (error @ h)).sum())


@pytest.mark.parametrize("name", PLANS)
def test_without_correlations_it_is_the_nearest(name, gaussian):
    weight = gaussian(P, Q)
    given = statistics(inputs=torch.eye(Q))
    plan = planned(name, sides="input", damping=0)
    assert torch.equal(coded(plan, weight, given), coded(planned(name), weight, None))


@pytest.mark.parametrize("name", ["uniform", "normal_float", "numbers"])
def test_a_diagonal_metric_changes_nothing_for_single_weights(name, gaussian):
    weight = gaussian(P, Q)
    given = statistics(torch.rand(Q) + 0.1, torch.rand(P) + 0.1)  # diagonals alone
    plan = planned(name, sides="both")
    assert torch.equal(coded(plan, weight, given), coded(planned(name), weight, None))


@pytest.mark.parametrize("sides", ["input", "both"])
@pytest.mark.parametrize("name", [name for name in PLANS if name != "numbers"])
def test_the_cost_falls(name, sides, gaussian):
    weight = gaussian(P, Q)
    given = statistics()
    both = sides == "both"
    nearest = cost(weight - coded(planned(name), weight, None), given, both=both)
    found = cost(weight - coded(planned(name, sides=sides), weight, given), given, both=both)
    assert found < 0.9 * nearest


def test_a_scalar_grid_with_the_input_side_is_gptq(gaussian):
    """By the formulas of the paper: columns in turn, with the Cholesky factor of the inverse."""
    weight, given = gaussian(P, Q).double(), statistics()
    h = damped(given.inputs, 0.03)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    found = coded(planned("uniform", sides="input"), weight.float(), given)

    def gptq(stretch: float) -> Tensor:
        scale = stretch * weight.abs().amax(1)
        rest, expected = weight.clone(), torch.empty_like(weight)
        for column in range(Q):
            level = ((rest[:, column] / scale + 1) * 3.5).round().clamp(0, 7) / 3.5 - 1
            expected[:, column] = level * scale
            error = (rest[:, column] - expected[:, column]) / upper[column, column]
            rest[:, column:] -= error[:, None] * upper[column, column:]
        return expected

    stretches = AbsmaxScales.stretches
    same = [torch.allclose(found, gptq(stretch).float(), atol=1e-5) for stretch in stretches]
    assert sum(same) == 1
    costs = [cost(weight - gptq(stretch), given, both=False) for stretch in stretches]
    chosen = costs[same.index(True)]
    assert chosen < 0.9 * costs[0]  # clipping pays here
    assert chosen < 1.1 * min(costs)


BLOCKS: dict[str, Any] = {
    "scales": {"kind": "minmax", "block": 20},
    "quantizer": {"kind": "uniform", "bits": 2},
}


@pytest.mark.parametrize("sides", ["input", "both"])
def test_errors_are_carried_by_the_scales_that_groups_end_with(sides, gaussian):
    """Each code is the nearest one of its target, by the formulas and the scales as stored."""
    weight, given, rows = gaussian(P, Q), statistics(), 8
    plan = MatrixPlan.model_validate(
        {**BLOCKS, "rounding": {"kind": "feedback", "sides": sides, "rows": rows}}
    )
    encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given)
    decoded = decode_matrix(plan, (P, Q), "f32", encoded.sections, dtype=torch.float64)
    upper = factor(damped(given.inputs, 0.03))[0].triu(1)
    above = torch.eye(P).double()
    if sides == "both":
        above = block_unit(factor(damped(correlated(P, 2), 0.1))[0], rows)
    scales, zeros = (
        encoded.sections[role].double().view(P, 2).repeat_interleave(20, dim=1)
        for role in ("scales", "zeros")
    )
    error = weight.double() - decoded
    moved = weight.double() + above.triu(1).t() @ error
    target = moved + (moved - decoded) @ upper
    nearest = ((target - zeros) / scales * 3).round().clamp(0, 3) / 3 * scales + zeros
    assert torch.allclose(decoded, nearest, atol=1e-4)
    first = encode_matrix(  # what the scales would be without feedback
        MatrixPlan.model_validate(BLOCKS), weight, seed=1, source_dtype="f32"
    ).sections["scales"]
    changed = encoded.sections["scales"] != first
    assert changed.view(P, 2).any(0).all()


def test_factors_of_groups_are_chosen_row_by_row(gaussian, monkeypatch):
    """Rows of two kinds: one factor for all is too large for some, or too small for others."""
    weight = gaussian(96, 128)
    weight[::2, ::9] = 5 * weight[::2, ::9].sign()  # these rows want their whole range
    mixing = torch.randn(128, 128, generator=torch.Generator().manual_seed(2)) / 128**0.5
    h = (torch.eye(128) + mixing @ mixing.t()).double()
    plan = MatrixPlan.model_validate(
        {
            "scales": {"kind": "absmax", "block": 32},
            "quantizer": {"kind": "uniform", "bits": 3},
            "rounding": {"kind": "feedback", "sides": "input"},
        }
    )

    def found() -> float:
        return cost(weight - coded(plan, weight, statistics(h)), statistics(h), both=False)

    chosen, each = found(), []
    for factor_of_all in AbsmaxScales.stretches:
        monkeypatch.setattr(AbsmaxScales, "stretches", (factor_of_all,))
        each.append(found())
    assert chosen < 0.98 * min(each), (chosen, each)


def test_the_factor_is_unit_upper_triangular():
    h = correlated(30, 3)
    upper, diagonal = factor(h)
    assert torch.allclose((upper * diagonal) @ upper.t(), h)
    assert torch.equal(upper.triu(), upper)
    assert torch.equal(upper.diagonal(), torch.ones(30).double())
    blocks = block_unit(upper, 8)
    for first in range(0, 30, 8):
        block = blocks[first : first + 8, first : first + 8]
        assert torch.allclose(block, torch.eye(len(block)).double(), atol=1e-12)


def test_a_metric_that_is_not_positive_definite_is_damped_more():
    singular = torch.ones(6, 6).double()
    upper, diagonal = factor(singular)
    assert torch.allclose((upper * diagonal) @ upper.t(), singular, atol=1e-2)
    with pytest.raises(CodecError, match="positive definite"):
        factor(torch.full((3, 3), torch.nan).double())


def test_dead_inputs_and_no_inputs_at_all(gaussian):
    weight = gaussian(P, Q)
    some = correlated(Q, 1)
    some[:, :5] = some[:5] = 0
    for inputs in (some, torch.zeros(Q, Q)):
        decoded = coded(planned("trellis", sides="both"), weight, statistics(inputs))
        assert torch.isfinite(decoded).all()
        assert float((decoded - weight).norm() / weight.norm()) < 1


def test_transformed_statistics_are_those_of_the_transformed_matrix(gaussian):
    """Of x and g by hand: the inputs and gradients that the rotated matrix sees."""
    plan = planned("rotated")
    (params,) = plan.transform
    weight, x, g = (
        gaussian(P, Q).double(),
        gaussian(90, Q, seed=1).double(),
        gaussian(90, P).double(),
    )
    rotated = codec_of(params).encode(params, weight.clone())[1]
    transform = codec_of(params).decoder(params, (P, Q), {}, torch.float64)
    assert torch.allclose(transform.outputs(transform.inputs(x) @ rotated.t()), x @ weight.t())
    inner_x, inner_g = transform.inputs(x), transform.gradients(g)
    assert torch.allclose(transform.gram(x.t() @ x), inner_x.t() @ inner_x)
    assert torch.allclose(transform.gradient_gram(g.t() @ g), inner_g.t() @ inner_g)
    # The gradient of W is g x^T, and the same in the rotated basis.
    outer = torch.einsum("np,nq->pq", g, x)
    inner = codec_of(params).encode(params, outer)[1]
    assert torch.allclose(inner, torch.einsum("np,nq->pq", inner_g, inner_x))


def test_statistics_without_gradients_serve_one_side(gaussian):
    weight, given = gaussian(P, Q), statistics(gradients=False)
    coded(planned("trellis", sides="input"), weight, given)
    with pytest.raises(CodecError, match="needs gradients") as caught:
        coded(planned("trellis", sides="both"), weight, given)
    assert "--no-gradients" in (caught.value.hint or "")


def test_statistics_are_needed(gaussian):
    with pytest.raises(CodecError, match="needs the statistics"):
        coded(planned("uniform", sides="input"), gaussian(P, Q), None)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ({**UNIFORM, "transform": [{"kind": "normalize"}]}, "does not fit the transform"),
        (
            {
                "autoencoder": {"kind": "hnerv", "patch": 4, "latent": [1, 2, 2], "width": 1},
                "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
            },
            "needs the matrix itself",
        ),
    ],
)
def test_what_does_not_fit_is_refused(stages, reason):
    with pytest.raises(ValidationError, match=reason):
        MatrixPlan.model_validate({**stages, "rounding": {"kind": "feedback"}})


SWEPT = [name for name in PLANS if not name.startswith(("trellis", "rotated", "numbers"))]


@pytest.mark.parametrize("name", SWEPT)
def test_sweeps_lower_the_cost(name, gaussian):
    weight, given = gaussian(P, Q), statistics()
    without = planned(name, sides="input")
    swept = planned(name, sides="input", sweeps=20)
    before = cost(weight - coded(without, weight, given), given, both=False)
    found = coded(swept, weight, given)
    after = cost(weight - found, given, both=False)
    assert after < (0.995 if name == "minmax" else 0.98) * before
    again = planned(name, sides="input", sweeps=40)  # it had ended by itself
    assert torch.equal(coded(again, weight, given), found)


def test_after_the_sweeps_no_single_code_can_be_better(gaussian):
    """By trying the levels of each weight, a weight at a time."""
    weight, given = gaussian(8, Q).double(), statistics(outputs=correlated(8, 2))
    plan = planned("uniform", sides="input", sweeps=200)
    found = coded(plan, weight.float(), given).double()
    h = damped(given.inputs, 0.03)

    def of(error: Tensor) -> float:
        return float((error @ h) @ error)

    better = 0.0
    for row in range(8):
        values = found[row]
        levels = values.unique()
        best = of(weight[row] - values)
        for column in range(Q):
            for level in levels:
                changed = values.clone()
                changed[column] = level
                better = max(better, 1 - of(weight[row] - changed) / best)
    assert better < 0.05


def test_sweeps_are_for_the_input_side_and_for_single_codes():
    with pytest.raises(ValidationError, match="use `sides: input`"):
        planned("uniform", sides="both", sweeps=2)
    with pytest.raises(ValidationError, match="leave these out"):
        planned("trellis", sides="input", sweeps=2)


def test_the_loss_of_sums_is_that_of_a_slow_search(gaussian):
    """AQLM's search by plain loops: for each row and group the pair of codewords of least cost."""
    weight, given = gaussian(P, Q), statistics()
    plan = planned("additive", sides="input", sweeps=4)
    encoded = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=given)
    found = decode_matrix(plan, (P, Q), "f32", encoded.sections, dtype=torch.float64)
    nearest = planned("additive")
    start = encode_matrix(nearest, weight, seed=1, source_dtype="f32")
    slow = decode_matrix(nearest, (P, Q), "f32", start.sections, dtype=torch.float64)
    scale = start.sections["scales"].double()
    books = start.sections["codebook"].double() * start.sections["codebook_scale"].double()
    pairs = (books[0][:, None] + books[1][None]).view(-1, 4) * scale
    h = damped(given.inputs, 0.03)
    for _ in range(4):
        for first in range(0, Q, 4):
            k = slice(first, first + 4)
            for row in range(P):
                error = weight[row].double() - slow[row]
                error[k] = 0
                rest = weight[row, k].double() - pairs  # [pairs, 4]
                costs = ((rest @ h[k, k]) * rest).sum(1) + 2 * rest @ (h[k] @ error)
                slow[row, k] = pairs[costs.argmin()]
    ours = cost(weight - found, given, both=False)
    assert ours < 1.05 * cost(weight - slow, given, both=False)
    assert ours < 0.6 * cost(weight - coded(nearest, weight, None), given, both=False)


def test_vectors_do_not_cross_orders_of_columns() -> None:
    """Rows of one order are coded by themselves, so they hold whole vectors."""
    fields = {
        "permutation": {"kind": "nearest", "rows": 6},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
        "rounding": {"kind": "feedback", "sides": "input"},
    }
    with pytest.raises(ValidationError, match="use a multiple of 4, or `rows: all`"):
        MatrixPlan.model_validate(fields)
    for part in (
        {"permutation": {"kind": "nearest", "rows": 8}},
        {"permutation": {"kind": "nearest", "rows": "all"}},
        {"quantizer": {"kind": "vq", "bits": 2, "dim": 4, "axis": "cols"}},
        {"rounding": {"kind": "nearest"}},
    ):
        MatrixPlan.model_validate({**fields, **part})
