"""Columns and rows sorted by norms, or by what their errors cost."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan
from tests.codecs.size_law import some_statistics

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 40)]
SIDES = ["columns", "rows", "both"]
KINDS = {"norm_sorted": {"rows": 8}, "act_order": {}}


def spread(p, q, seed=0):
    """Weights whose rows and columns differ in size."""
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(p, q, generator=made)
    return weight * torch.rand(p, 1, generator=made) * torch.rand(1, q, generator=made) ** 3


def coded(plan, weight, statistics):
    plan = MatrixPlan.model_validate(plan)
    given = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=statistics)
    shape = (weight.shape[0], weight.shape[1])
    decoded = decode_matrix(plan, shape, "f32", given.sections, dtype=torch.float32)
    return given, decoded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_order_alone_changes_nothing(kind, sides, shape):
    weight = spread(*shape)
    plan = {"permutation": {"kind": kind, "sides": sides, **KINDS[kind]}}
    encoded, decoded = coded(plan, weight, some_statistics(shape, 1))
    assert torch.equal(decoded, weight)
    assert encoded.relative_error == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [8, "all"])
def test_norms_descend(rows, shape, plan_of):
    params = plan_of(permutation={"kind": "norm_sorted", "sides": "both", "rows": rows}).permutation
    _, latent = codec_of(params).encode(params, spread(*shape))
    sizes = latent.norm(dim=1)
    assert (sizes[1:] <= sizes[:-1] + 1e-6).all()
    for block in latent.split(8 if rows == 8 else shape[0]):
        sizes = block.norm(dim=0)
        assert (sizes[1:] <= sizes[:-1] + 1e-6).all()


def test_act_order_sorts_by_the_moments_and_keeps_equals_in_order():
    statistics = some_statistics((6, 5), 1)
    inputs = torch.diag(torch.tensor([2.0, 7, 2, 1, 7]))
    outputs = torch.diag(torch.tensor([1.0, 2, 3, 3, 2, 1]))
    given = MatrixStatistics(
        inputs=inputs,
        outputs=outputs,
        mean_abs=statistics.mean_abs,
        count=4,
    )
    plan = {"permutation": {"kind": "act_order", "sides": "both"}}
    sections = coded(plan, spread(6, 5), given)[0].sections
    assert unpack(sections["order"], 3, 5).argsort().tolist() == [1, 4, 0, 2, 3]
    assert unpack(sections["row_order"], 3, 6).argsort().tolist() == [2, 3, 1, 4, 0, 5]


def test_groups_of_sorted_columns_share_their_size(gaussian, plan_of):
    """Normal weights in columns of log-normal size: the squares of the scales fall to a third."""
    made = torch.Generator().manual_seed(4)
    weight = gaussian(64, 4096) * torch.exp(torch.randn(4096, generator=made))
    squares = {}
    for kind in ("none", "norm_sorted"):
        plan = plan_of(permutation={"kind": kind}, scales={"kind": "absmax", "block": 64})
        squares[kind] = encode_matrix(plan, weight, seed=1, source_dtype="f32").sections["scales"]
    ratio = squares["norm_sorted"].square().mean() / squares["none"].square().mean()
    assert float(ratio) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("sides", ["input", "both"])
@pytest.mark.parametrize("order", ["columns", "both"])
def test_feedback_in_order_of_cost_errs_less_than_nearest(order, sides):
    """Orders of rows move the output metric too: a wrong one would show here."""
    weight, statistics = spread(32, 64), some_statistics((32, 64), 2)
    costs = {}
    for name, rounding in {
        "nearest": {"kind": "nearest"},
        "feedback": {"kind": "feedback", "sides": sides, "rows": 4},
    }.items():
        plan = {
            "permutation": {"kind": "act_order", "sides": order},
            "scales": {"kind": "affine", "code_bits": 3, "block": 16},
            "quantizer": {"kind": "uniform", "bits": 3},
            "rounding": rounding,
        }
        error = coded(plan, weight, statistics)[1] - weight
        outputs = statistics.outputs if sides == "both" else torch.eye(32)
        costs[name] = float((outputs @ error @ statistics.inputs * error).sum())
    assert costs["feedback"] < 0.85 * costs["nearest"]


def test_feedback_in_any_order_is_feedback_on_the_sorted_matrix():
    """Coding in order is coding the sorted matrix with its own moments, codes and all."""
    weight, statistics = spread(16, 32), some_statistics((16, 32), 3)
    stages = {
        "scales": {"kind": "affine", "code_bits": 3, "block": 8},
        "quantizer": {"kind": "uniform", "bits": 3},
        "rounding": {"kind": "feedback", "sides": "both", "rows": 4},
    }
    order = {"kind": "act_order", "sides": "both"}
    encoded, decoded = coded({"permutation": order, **stages}, weight, statistics)
    columns = statistics.inputs.diagonal().argsort(descending=True, stable=True)
    rows = statistics.outputs.diagonal().argsort(descending=True, stable=True)
    moved = MatrixStatistics(
        inputs=statistics.inputs[columns][:, columns],
        weighted_inputs=statistics.weighted_inputs[columns][:, columns],
        outputs=statistics.outputs[rows][:, rows],
        weighted_outputs=statistics.weighted_outputs[rows][:, rows],
        mean_abs=statistics.mean_abs[columns],
        count=statistics.count,
    )
    plain, expected = coded(stages, weight[rows][:, columns].contiguous(), moved)
    assert torch.equal(encoded.sections["codes"], plain.sections["codes"])
    assert torch.equal(decoded[rows][:, columns], expected)


def test_rows_of_a_decoded_part_are_the_right_ones(plan_of):
    from reallm_compiler.codecs.decode import MatrixDecoder
    from reallm_compiler.storage.matrix import layout_of

    weight = spread(20, 12)
    plan = plan_of(permutation={"kind": "norm_sorted", "sides": "both", "rows": 4})
    sections = encode_matrix(plan, weight, seed=1, source_dtype="f32").sections
    decoder = MatrixDecoder(layout_of(plan, (20, 12), "f32"), sections, torch.float32)
    assert torch.equal(decoder.row(13), weight[13])
    assert torch.equal(decoder.rows(0, 7), weight[:7])


def test_orders_of_rows_by_gradients_need_them():
    statistics = some_statistics((8, 6), 1)
    given = MatrixStatistics(
        inputs=statistics.inputs,
        mean_abs=statistics.mean_abs,
        count=4,
    )
    with pytest.raises(CodecError, match="`act_order` with `sides: rows` needs gradients"):
        coded({"permutation": {"kind": "act_order", "sides": "rows"}}, spread(8, 6), given)


@pytest.mark.parametrize("role", ["order", "row_order"])
def test_an_index_out_of_range_is_refused(role, plan_of):
    plan = plan_of(permutation={"kind": "norm_sorted", "sides": "both"})
    sections = encode_matrix(plan, spread(5, 5), seed=1, source_dtype="f32").sections
    sections[role] = torch.full_like(sections[role], 255)
    what = "column" if role == "order" else "row"
    with pytest.raises(CodecError, match=f"the {what} order names position 7 of 5"):
        decode_matrix(plan, (5, 5), "f32", sections, dtype=torch.float32)


def test_what_is_learned_by_a_group_cannot_follow_statistics():
    with pytest.raises(ValueError, match="`act_order` permutation does not go with `share`"):
        MatrixPlan.model_validate(
            {
                "permutation": {"kind": "act_order"},
                "quantizer": {"kind": "vq", "bits": 1, "dim": 2},
                "share": "g",
            }
        )
