"""Clipping: each group's share of its largest weight, against a search weight by weight."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.clip import SHARES, best_clip
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.stages import MatrixPlan
from tests.codecs.size_law import some_statistics

KINDS = {"absmax": {}, "minmax": {}, "affine": {"code_bits": 3}, "rms": {}}


def plan_of(kind, clip="inputs", rounding="nearest", **scales):
    return MatrixPlan.model_validate(
        {
            "scales": {"kind": kind, "block": 8, "clip": clip, **KINDS[kind], **scales},
            "quantizer": {"kind": "uniform", "bits": 3},
            "rounding": {"kind": rounding},
        }
    )


def skewed(p, q):
    """Weights with a few large ones, so that clipping pays for some groups."""
    made = torch.Generator().manual_seed(p)
    return torch.randn(p, q, generator=made) ** 3 + 0.1 * torch.randn(p, q, generator=made)


def plain_rounding(kind, group, share):
    """A group [n] coded at 3 bits by the formulas, levels to `share` of its largest weight."""
    bound = share * group.abs().max()
    if kind == "affine":
        least, largest = min(group.min(), 0.0), max(group.max(), 0.0)
        least, largest = max(least, -bound), min(largest, bound)
        step = (largest - least) / 7
        zero = torch.round(-least / step).clamp(0, 7)
        return step * (torch.round(group / step + zero).clamp(0, 7) - zero)
    if kind == "minmax":
        least, largest = max(group.min(), -bound), min(group.max(), bound)
    else:
        least, largest = -bound, bound
    step = (largest - least) / 7
    return least + step * torch.round((group - least) / step).clamp(0, 7)


@pytest.mark.parametrize("clip", ["weights", "inputs"])
@pytest.mark.parametrize("kind", ["absmax", "minmax", "affine"])
def test_shares_are_those_of_a_search_group_by_group(kind, clip):
    """Every group's cost is within rounding of the least of the plain search's."""
    weight = skewed(12, 24)
    statistics = some_statistics((12, 24), 1)
    encoded = encode_matrix(
        plan_of(kind, clip), weight, seed=1, source_dtype="f32", statistics=statistics
    )
    decoded = decode_matrix(
        plan_of(kind, clip), (12, 24), "f32", encoded.sections, dtype=torch.float64
    )
    clipped = 0
    for row, first in itertools.product(range(12), range(0, 24, 8)):
        span = slice(first, first + 8)
        group = weight[row, span]  # in float32: both ends clipped, -min / step is a tie
        metric = statistics.inputs[span, span].double() if clip == "inputs" else torch.eye(8)

        def cost(values, group=group, metric=metric):
            error = values.double() - group.double()
            return float(error @ metric.double() @ error)

        costs = [cost(plain_rounding(kind, group, share)) for share in SHARES]
        assert cost(decoded[row, span]) == pytest.approx(min(costs), rel=1e-4)
        clipped += costs.index(min(costs)) > 0
    assert clipped > 8  # else nothing was tried


@pytest.mark.parametrize("per", ["tensor", "row", "column", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_never_costs_more_in_its_own_metric(kind, per):
    weight, statistics = skewed(16, 20), some_statistics((16, 20), 2)
    costs = {}
    for clip in ("none", "weights"):
        plan = plan_of(kind, clip, per=per)
        given = encode_matrix(
            plan, weight, seed=1, source_dtype="f32", statistics=statistics
        ).sections
        error = decode_matrix(plan, (16, 20), "f32", given, dtype=torch.float64) - weight
        costs[clip] = float(error.square().sum())
    assert costs["weights"] <= costs["none"] * (1 + 1e-6)
    if per == "block":
        assert costs["weights"] < costs["none"]


def test_the_metric_follows_the_order_of_the_columns():
    """A permutation before the search: the costs are those of the sorted inputs."""
    weight, statistics = skewed(8, 16), some_statistics((8, 16), 3)
    plan = plan_of("affine").model_copy(
        update={
            "permutation": MatrixPlan.model_validate(
                {"permutation": {"kind": "act_order"}}
            ).permutation
        }
    )
    given = encode_matrix(plan, weight, seed=1, source_dtype="f32", statistics=statistics).sections
    columns = statistics.inputs.diagonal().argsort(descending=True, stable=True)
    inputs = statistics.inputs[columns][:, columns]
    moved = some_statistics((8, 16), 3).__class__(
        inputs=inputs,
        mean_abs=None,
        count=1,
    )
    plain = encode_matrix(
        plan_of("affine"), weight[:, columns], seed=1, source_dtype="f32", statistics=moved
    ).sections
    for role, values in plain.items():
        assert torch.equal(given[role], values)


def test_groups_that_are_no_runs_of_a_row_are_weighed_by_the_diagonal():
    params = plan_of("absmax", block=6).scales
    latent, gram = skewed(4, 8), torch.diag(torch.arange(1.0, 9))
    tried = []

    def coded(shares):
        tried.append(shares)
        return latent * shares[0]

    shares = best_clip(params, latent, coded, lambda: [(slice(0, 4), gram)])
    assert len(tried) == len(SHARES)
    assert shares.tolist() == [1.0] * 6  # the error grows with what is taken


def test_feedback_takes_the_clipped_scales_as_they_are():
    weight, statistics = skewed(8, 16), some_statistics((8, 16), 4)
    nearest, feedback = (
        encode_matrix(
            plan_of("affine", rounding=rounding),
            weight,
            seed=1,
            source_dtype="f32",
            statistics=statistics,
        ).sections
        for rounding in ("nearest", "feedback")
    )
    assert torch.equal(nearest["scales"], feedback["scales"])
    assert not torch.equal(nearest["codes"], feedback["codes"])


def test_learned_levels_cannot_be_searched_with():
    with pytest.raises(ValueError, match="`clip` is searched with the levels, and those of `vq`"):
        MatrixPlan.model_validate(
            {
                "scales": {"kind": "absmax", "clip": "weights"},
                "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
            }
        )
    with pytest.raises(ValueError, match="`absmax` scales needs the matrix itself"):
        MatrixPlan.model_validate(
            {
                "scales": {"kind": "absmax", "clip": "inputs"},
                "autoencoder": {"kind": "hnerv", "patch": 4, "latent": [1, 2, 2], "width": 1},
                "quantizer": {"kind": "uniform", "bits": 4},
            }
        )


@pytest.mark.parametrize("offset", ["matrix", "superblock"])
def test_scales_and_zero_points_have_second_levels_of_their_own(offset):
    """SpQR: 3 + 3 bits over groups of 16, and 16-bit numbers for each 16 of these."""
    plan = MatrixPlan.model_validate(
        {
            "scales": {
                "kind": "minmax",
                "block": 16,
                "bits": 3,
                "superblock": 16,
                "zero_bits": 4,
                "zero_superblock": 8,
                "offset": offset,
                "dtype": "float16",
            },
            "quantizer": {"kind": "uniform", "bits": 3},
        }
    )
    weight = skewed(32, 64) * torch.rand(32, 1, generator=torch.Generator().manual_seed(1))
    sections = encode_matrix(plan, weight, seed=1, source_dtype="f32").sections
    offsets = {"matrix": (1, 1), "superblock": (8, 16)}[offset]
    assert [len(sections[f"{name}_offset"]) for name in ("scales", "zeros")] == list(offsets)
    assert [len(sections[f"{name}_super"]) for name in ("scales", "zeros")] == [8, 16]
    field = codec_of(plan.scales).decoder(plan.scales, (32, 64), sections, torch.float32)
    least = weight.view(-1, 16).amin(1)
    groups = least.view(-1, 8)  # super-blocks of the zero points
    low = groups.amin(1, keepdim=True) if offset == "superblock" else least.min()
    step = (groups - low).amax(1, keepdim=True) / 15
    wrong = (field.zero.view(-1, 8) - groups).abs()
    assert (wrong <= step / 2 + 1e-2 * groups.abs() + 1e-3).all()


def test_offsets_of_super_blocks_err_less_with_few_bits():
    weight = skewed(32, 64)
    errors = {}
    for offset in ("matrix", "superblock"):
        plan = plan_of("minmax", "none", bits=3, superblock=4, offset=offset)
        errors[offset] = encode_matrix(plan, weight, seed=1, source_dtype="f32").relative_error
    assert errors["superblock"] < errors["matrix"]
