"""Size law of the trained autoencoder: the paper's numbers, and words that do not go together."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from pydantic import ValidationError

from reallm_compiler.stages import Hnerv, MatrixPlan
from reallm_compiler.storage import hnerv_costs as costs
from reallm_compiler.storage import hnerv_structure as structure
from reallm_compiler.storage.matrix import layout_of

PAPER = (4096, 4096)


def stage(**fields: object) -> Hnerv:
    return Hnerv.model_validate({"kind": "hnerv", **fields})


@pytest.mark.parametrize(
    ("params", "width", "parameters"),
    [
        (7_200_000, 248, 6_834_556),
        (5_400_000, 213, 5_048_971),
        (7_700_000, 257, 7_309_052),
        (4_500_000, 194, 4_198_353),
        (1_000_000, 80, 730_425),
        (500_000, 45, 237_492),
    ],
    ids=str,
)
def test_the_width_that_the_papers_c_stands_for(params: int, width: int, parameters: int) -> None:
    asked = stage(decoder_params=params)
    assert structure.decoder_width(asked, PAPER, shared=False) == width
    assert structure.decoder_parameters(asked, width) == parameters
    assert structure.decoder_parameters(stage(width=width), width) == parameters


def test_channels_and_weights_of_each_stage_of_the_papers_decoder() -> None:
    made = structure.stages(stage(width=248), 248)
    assert [made[0].inputs, *(one.outputs for one in made)] == [248, 207, 172, 143, 119, 99]
    assert [one.kernel for one in made] == [1, 3, 5, 5, 5]
    assert [one.numel + one.channels for one in made] == [
        206_172,
        1_282_432,
        2_460_172,
        1_702_176,
        1_178_496,
    ]


def test_the_encoder_of_the_paper() -> None:
    assert costs.encoder_parameters(stage(width=248)) == 203_312


def test_what_decoding_and_training_cost() -> None:
    params = stage(width=248)
    assert round(costs.patch_macs(params, 248) / 1e9, 1) == 116.8
    assert costs.decode_macs(params, PAPER, shared=False) == 64 * costs.patch_macs(params, 248)
    each = 6 * (costs.patch_macs(params, 248) + costs.encoder_macs(params))
    assert costs.training_operations(params, PAPER, shared=False) == 2000 * 64 * each
    assert round(2000 * 64 * 6 * costs.patch_macs(params, 248) / 1e15) == 90  # the paper's figure
    assert layout_of(MatrixPlan(), PAPER, "bf16").cost.decode_macs == 0


def test_the_papers_worked_example() -> None:
    plan = MatrixPlan.model_validate(
        {
            "autoencoder": {"kind": "hnerv", "decoder_params": 7.2e6},
            "quantizer": {"kind": "none", "dtype": "float16"},
        }
    )
    exact = Fraction(6 * 7_200_000 + 16 * 16**3 * 64, 4096**2)
    assert layout_of(plan, PAPER, "bf16").paper_bits() == exact
    assert float(exact) == pytest.approx(2.824920654, abs=1e-9)
    half = layout_of(plan, PAPER, "bf16").paper_terms(sharers=2)
    assert half["decoder"] == Fraction(6 * 7_200_000, 2 * 4096**2)
    assert half["codes"] == Fraction(1, 4)
    sizes = {spec.role: spec.nbytes for spec in layout_of(plan, PAPER, "bf16").sections}
    assert sizes == {
        "decoder_codes": 6_826_488 * 6 // 8,
        "decoder_scales": 2 * 2_960,
        "decoder_values": 2 * 8_068,
        "level": 8,
        "values": 2 * 64 * 4096,
    }


def test_latents_lie_in_one_matrix_and_ragged_edges_count() -> None:
    params = stage(patch=[32, 16], latent=[3, 8, 4], width=5)
    assert structure.grid(params, (33, 64)) == (2, 4)
    assert structure.latent_shape(params, (33, 64)) == (2 * 3, 4 * 8 * 4)
    plan = MatrixPlan(autoencoder=params)
    (values,) = [s for s in layout_of(plan, (33, 64), "f32").sections if s.role == "values"]
    assert values.shape == (6, 128)


def test_the_size_of_a_shared_decoder_does_not_depend_on_a_members_shape() -> None:
    params = stage(patch=32, latent=[4, 4, 4], decoder_params=20_000, kernel_max=3)
    widths = {
        structure.decoder_width(params, shape, shared=True) for shape in [(64, 64), (1024, 512)]
    }
    assert len(widths) == 1
    own = {structure.decoder_width(params, shape, shared=False) for shape in [(64, 64), (512, 512)]}
    assert len(own) == 2


def test_strides_are_the_primes_of_patch_over_latent_largest_first() -> None:
    assert stage(width=9).strides == (2, 2, 2, 2, 2)
    assert stage(width=9, patch=36, latent=[1, 3, 3]).strides == (3, 2, 2)
    assert stage(width=9, patch=[70, 140], latent=[1, 5, 10]).strides == (7, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 8, "patch": 100}, "100 x 100 cannot come from a latent of 16 x 16"),
        ({"width": 8, "patch": [32, 64], "latent": [4, 8, 8]}, "the same whole factor"),
        ({"width": 8, "patch": 16}, "above 1"),
        ({"width": 8, "patch": 22, "latent": [4, 2, 2]}, "prime factor 11"),
        ({}, "`decoder_params` or `width`"),
        ({"width": 8, "decoder_params": 1000}, "`decoder_params` or `width`"),
        ({"width": 8, "kernel_max": 4}, "odd"),
        ({"width": 8, "kernel_min": 5, "kernel_max": 3}, "kernel_max is below kernel_min"),
        ({"width": 8, "reduce": "1/2"}, "between 1 and 16"),
    ],
    ids=[
        "no whole ratio",
        "two ratios",
        "no growth",
        "large prime",
        "no size",
        "two sizes",
        "even kernel",
        "kernels shrink",
        "channels grow",
    ],
)
def test_impossible_decoders_are_refused_with_a_reason(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(**fields)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"residual": {"kind": "low_rank", "rank": 2, "fit": "alternating"}}, "trained once"),
        ({"residual": {"kind": "low_rank", "rank": 2, "order": "quantizer_first"}}, "trained once"),
        ({"transform": [{"kind": "normalize"}, {"kind": "normalize"}]}, "once"),
        ({"quantizer": {"kind": "uniform", "bits": 4}}, "need scales"),
    ],
    ids=["alternating", "quantizer first", "transform twice", "no scales"],
)
def test_impossible_plans_are_refused_with_a_reason(plan: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MatrixPlan.model_validate({"autoencoder": {"kind": "hnerv", "width": 8}, **plan})


def test_a_decoder_that_leaves_no_room_beside_its_latents_is_refused() -> None:
    plan = MatrixPlan(autoencoder=stage(decoder_params=262_144))
    refused = layout_of(plan, PAPER, "bf16").refusal
    assert refused is not None
    assert refused[0] == "autoencoder"
    assert "262144" in refused[1]
    assert layout_of(plan, (2048, 2048), "bf16").refusal is None
    shared = plan.model_copy(update={"share": "all"})
    assert layout_of(shared, PAPER, "bf16").refusal is None


def test_the_width_of_any_decoder_is_found_at_once() -> None:
    """A latent of many channels makes the first guess a million widths too large."""
    params = stage(patch=4, latent=[65536, 2, 2], decoder_params=10**10, kernel_max=1, reduce=16)
    start = time.process_time()
    width = structure.decoder_width(params, (4, 4), shared=True)
    assert time.process_time() - start < 0.1

    def parameters(wide: int) -> Fraction:
        return Fraction(4, 16) * wide**2 + 9 * 65536 * wide

    assert parameters(width) <= 10**10 < parameters(width + 1)
