"""Algorithm 1 against a plain walk, and its way back."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import nearest
from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.codecs.orders import StoredOrder
from reallm_compiler.errors import CodecError

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)]

CODEC = nearest.NearestCodec()


def slow_walk(block):
    """Greedy nearest neighbours by explicit distances."""
    columns = block.double().t()
    order, free = [0], list(range(1, len(columns)))
    while free:
        distances = [float((columns[j] - columns[order[-1]]).square().sum()) for j in free]
        order.append(free.pop(distances.index(min(distances))))
    return order


def params_of(plan_of, rows):
    return plan_of(permutation={"kind": "nearest", "rows": rows}).permutation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [8, "all"])
def test_equals_the_plain_walk(shape, rows, gaussian, plan_of):
    weight = gaussian(*shape)
    params = params_of(plan_of, rows)
    positions = nearest.find_order(params, weight)
    high = shape[0] if rows == "all" else rows
    for block, position in zip(weight.split(high), positions, strict=True):
        assert position.argsort().tolist() == slow_walk(block)
    together = nearest._visit_together(list(weight.split(high)))
    assert torch.equal(together, positions.argsort(dim=1))


@pytest.mark.parametrize("budget", [4, 400, 4000, 20000])
def test_little_memory_gives_the_same_order(budget, gaussian):
    weight = gaussian(16, 60)
    assert nearest._visit(weight, budget).tolist() == slow_walk(weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 8, 100, "all"])
def test_columns_come_back(shape, rows, gaussian, plan_of):
    weight = gaussian(*shape)
    params = params_of(plan_of, rows)
    sections, coded = CODEC.encode(params, weight)
    read = CODEC.decoder(params, shape, sections)
    assert torch.equal(read.sections()["order"], sections["order"])
    for first in range(0, shape[0], 24):
        part = read.restore(coded[first : first + 24], first)
        assert torch.equal(part, weight[first : first + 24])


def test_stored_is_the_position_of_each_column(plan_of):
    # Columns on a line: 0 at the left end, walked from left to right.
    weight = torch.tensor([[0.0, 30.0, 10.0, 20.0]])
    params = params_of(plan_of, "all")
    positions = nearest.find_order(params, weight)
    assert positions.tolist() == [[0, 3, 1, 2]]
    assert StoredOrder(params.rows, columns=positions).permute(weight).tolist() == [[0, 10, 20, 30]]


def test_equal_columns_do_not_collide(plan_of):
    weight = torch.zeros(8, 12)
    weight[:, 5] = 1
    weight[:, 9] = 1
    params = params_of(plan_of, 8)
    positions = nearest.find_order(params, weight)
    # Ties go to the lowest index.
    assert positions.argsort(dim=1).tolist() == [[0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 5, 9]]


def test_neighbours_come_nearer_as_in_the_published_measurement(gaussian, plan_of):
    weight = gaussian(128, 4096)
    params = params_of(plan_of, 128)
    positions = nearest.find_order(params, weight)

    def mean_step(x):
        return float((x[:, 1:] - x[:, :-1]).square().sum(0).sqrt().mean())

    assert mean_step(weight) == pytest.approx(16.00, abs=0.05)
    assert mean_step(StoredOrder(params.rows, columns=positions).permute(weight)) == pytest.approx(
        13.63, abs=0.05
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [16, 128, "all"])
def test_battery(shape, rows, gaussian, plan_of, check_codec):
    plan = plan_of(
        permutation={"kind": "nearest", "rows": rows},
        scales={"kind": "absmax", "block": 16},
        quantizer={"kind": "normal_float", "bits": 4},
    )
    assert check_codec(plan, gaussian(*shape)).relative_error < 0.2


def test_an_order_alone_is_lossless(gaussian, plan_of, check_codec):
    plan = plan_of(permutation={"kind": "nearest", "rows": 8})
    assert check_codec(plan, gaussian(33, 100)).relative_error == 0


def test_a_position_outside_is_refused(plan_of):
    params = params_of(plan_of, "all")
    sections = {"order": pack(torch.tensor([0, 1, 2, 3, 7]), 3)}
    with pytest.raises(CodecError, match="names position 7 of 5"):
        CODEC.decoder(params, (2, 5), sections)
