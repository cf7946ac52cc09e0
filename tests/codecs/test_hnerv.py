"""The trained autoencoder: it learns, stores what it trained with, and ends alike each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm_compiler.codecs import decode_matrix, encode_matrix, fit_shared
from reallm_compiler.codecs.autoencoders import hnerv
from reallm_compiler.codecs.autoencoders import hnerv_net as net
from reallm_compiler.codecs.autoencoders import hnerv_weights as weights
from reallm_compiler.codecs.callback import State
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Hnerv, MatrixPlan
from reallm_compiler.storage import hnerv_costs as costs
from reallm_compiler.storage import hnerv_structure as structure

TINY = {
    "kind": "hnerv",
    "patch": 8,
    "latent": [2, 2, 2],
    "width": 6,
    "min_width": 4,
    "kernel_max": 3,
    "encoder_width": 4,
    "epochs": 8,
    "lr": 1e-2,
    "batch": 4,
}
SMALL = {
    "kind": "hnerv",
    "patch": 16,
    "latent": [4, 4, 4],
    "width": 16,
    "min_width": 8,
    "kernel_min": 3,
    "kernel_max": 3,
    "encoder_width": 16,
    "decoder_bits": 8,
    "epochs": 150,
    "lr": 1e-2,
    "batch": 8,
}


def stage(base: dict[str, object], **fields: object) -> Hnerv:
    return Hnerv.model_validate({**base, **fields})


def plan(base: dict[str, object], *, fields: dict[str, object] | None = None, **other: object):
    return MatrixPlan.model_validate({"autoencoder": {**base, **(fields or {})}, **other})


def decoded_by_chance(params: Hnerv, grid: tuple[int, int], *, seed: int = 1) -> Tensor:
    """A matrix that a random decoder makes of random latents: mean 0, deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    random = params.model_copy(update={"qat": False})
    decoder = weights.Decoder(
        random, structure.decoder_width(params, (1, 1), shared=False), generator
    )
    with torch.no_grad():
        latents = torch.randn(grid[0] * grid[1], *params.latent, generator=generator)
        matrix = hnerv.from_patches(grid, decoder(latents))
    return (matrix - matrix.mean()) / matrix.std(correction=0)


@pytest.mark.parametrize("settings", [TINY, SMALL], ids=["tiny", "small"])
def test_modules_have_the_parameters_of_the_size_law(settings: dict[str, object]) -> None:
    params = stage(settings)
    generator = torch.Generator()
    decoder = weights.Decoder(params, params.width or 0, generator)
    counted = sum(p.numel() for p in [*decoder.plain, *decoder.stages])
    assert counted == structure.decoder_parameters(params, params.width or 0)
    encoder = net.Encoder(params, generator)
    assert sum(p.numel() for p in encoder.parameters()) == costs.encoder_parameters(params)


def test_the_papers_networks_have_the_papers_parameters() -> None:
    params = stage({"kind": "hnerv", "width": 248, "qat": False})
    decoder = weights.Decoder(params, 248, torch.Generator())
    assert sum(p.numel() for p in decoder.parameters()) == 6_834_556
    encoder = net.Encoder(params, torch.Generator())
    assert sum(p.numel() for p in encoder.parameters()) == 203_312


def test_networks_draw_nothing_from_the_global_random_numbers() -> None:
    before = torch.random.get_rng_state()
    net.Encoder(stage(TINY), torch.Generator())
    weights.Decoder(stage(TINY), 6, torch.Generator())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("qat", [True, False], ids=["qat", "ptq"])
def test_what_is_stored_decodes_to_what_was_trained(bits: int, qat: bool) -> None:
    params = stage(TINY, decoder_bits=bits, qat=qat)
    decoder = weights.Decoder(params, 6, torch.Generator().manual_seed(3))
    decoder.start_quantizing()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    read = weights.read(params, 6, decoder.sections(), torch.float32)
    trained = decoder.tensors()
    if qat:
        for have, want in zip(read.stages, trained.stages, strict=True):
            assert torch.equal(have[0], want[0])
            assert torch.equal(have[1], want[1])
        assert torch.equal(read.stem[0], trained.stem[0])
        assert torch.equal(read.head[1], trained.head[1])
    for have, _ in read.stages:
        for channel in have:
            assert len(channel.unique()) <= 2**bits


def test_gradients_of_quantized_weights() -> None:
    weight = torch.tensor([[[[0.3]], [[-0.2]], [[5.0]]]], requires_grad=True)  # one channel
    log_step = torch.tensor([0.5]).log().requires_grad_()
    out = weights._quantized(weight, log_step, 2)
    assert out.flatten().tolist() == [0.25, -0.25, 0.75]
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1, 1, 0]  # nothing passes outside the range
    # d/ds: level - w / s inside (0.5 - 0.6, -0.5 + 0.4), the last level outside (1.5).
    slope = (-0.1 - 0.1 + 1.5) * 0.5 / 3**0.5
    assert log_step.grad is not None
    assert float(log_step.grad) == pytest.approx(slope, rel=1e-5)


def test_rounding_takes_the_step_with_the_least_error(gaussian) -> None:
    weight = gaussian(3, 200)
    step = weights.best_steps(weight, 3)
    wrong = (weights._levels(weights._codes(weight, step, 3), step, 3) - weight).square().sum(1)
    for factor in (0.9, 1.1):
        other = step * factor
        more = (weights._levels(weights._codes(weight, other, 3), other, 3) - weight).square()
        assert (wrong <= more.sum(1)).all()


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (33, 20)], ids=str)
def test_patches_and_latents_there_and_back(shape: tuple[int, int], gaussian) -> None:
    params = stage(TINY)
    grid = structure.grid(params, shape)
    matrix = gaussian(*shape)
    patches = hnerv.cut(params, matrix)
    assert patches.shape == (grid[0] * grid[1], 1, 8, 8)
    assert torch.equal(hnerv.from_patches(grid, patches)[: shape[0], : shape[1]], matrix)
    latents = gaussian(grid[0] * grid[1], *params.latent)
    as_matrix = hnerv.to_matrix(grid, latents)
    assert as_matrix.shape == structure.latent_shape(params, shape)
    assert torch.equal(hnerv.to_patches(params, grid, as_matrix), latents)
    # Row: a channel of a row of patches; column: a place in a patch.
    assert as_matrix[1, 3] == latents[0, 1, 1, 1]


def test_it_learns_what_a_decoder_of_its_shape_can_say() -> None:
    chosen = plan(SMALL, quantizer={"kind": "none", "dtype": "float16"})
    matrix = decoded_by_chance(chosen.autoencoder, (2, 4))
    encoded = encode_matrix(chosen, matrix, seed=1, source_dtype="f32")
    assert encoded.relative_error < 0.1
    decoded = decode_matrix(chosen, (32, 64), "f32", encoded.sections, dtype=torch.float32)
    measured = float((decoded - matrix).norm() / matrix.norm())
    assert measured == pytest.approx(encoded.relative_error, rel=1e-5)


def test_training_with_quantized_weights_beats_rounding_after_it() -> None:
    matrix = decoded_by_chance(stage(SMALL), (2, 2))
    errors = {}
    for qat in (True, False):
        chosen = plan(SMALL, fields={"decoder_bits": 3, "qat": qat, "epochs": 80})
        errors[qat] = encode_matrix(chosen, matrix, seed=1, source_dtype="f32").relative_error
    assert errors[True] < 0.7 * errors[False]


PLANS = {
    "plain": plan(TINY),
    "vq": plan(
        TINY,
        scales={"kind": "absmax", "block": 8},
        permutation={"kind": "nearest", "rows": 4},
        quantizer={"kind": "vq", "bits": 2, "dim": 2},
    ),
    "all": plan(
        TINY,
        residual={"kind": "low_rank", "rank": 1},
        transform=[{"kind": "normalize", "by": "rms", "block": 16}],
        scales={"kind": "minmax", "per": "row"},
        quantizer={"kind": "uniform", "bits": 4},
        dora=True,
    ),
}


@pytest.mark.parametrize("chosen", PLANS.values(), ids=PLANS)
def test_each_pipeline_keeps_its_size_law(chosen: MatrixPlan, gaussian, check_codec) -> None:
    check_codec(chosen, gaussian(20, 17))


class InterruptionError(Exception):
    pass


class Keeper:
    """Keeps the state after some epoch and stops there."""

    def __init__(self, stop: int | None = None, state: State | None = None) -> None:
        self.stop, self.state = stop, state
        self.errors: list[float] = []

    def saved_state(self) -> State | None:
        return self.state

    def on_epoch_end(self, epoch, epochs, error, state) -> None:
        self.errors.append(error())
        if epoch == self.stop:
            self.state = {key: value.clone() for key, value in state().items()}
            raise InterruptionError


@pytest.mark.parametrize("stop", [1, 5, 6, 7], ids=lambda epoch: f"after {epoch}")
@pytest.mark.parametrize("name", ["plain", "vq"])
def test_an_interrupted_training_ends_with_the_same_bytes(name: str, stop: int, gaussian) -> None:
    chosen, matrix = PLANS[name], gaussian(20, 17)
    whole = encode_matrix(chosen, matrix, seed=1, source_dtype="f32")
    first = Keeper(stop)
    with pytest.raises(InterruptionError):
        encode_matrix(chosen, matrix, seed=1, source_dtype="f32", callback=first)
    second = Keeper(state=first.state)
    resumed = encode_matrix(chosen, matrix, seed=1, source_dtype="f32", callback=second)
    assert len(first.errors) + len(second.errors) == 8
    assert resumed.relative_error == whole.relative_error
    for role, values in whole.sections.items():
        assert torch.equal(values, resumed.sections[role]), role


def test_one_decoder_for_a_group(gaussian) -> None:
    group = [gaussian(16, 24, seed=1), gaussian(9, 8, seed=2)]
    chosen = plan(TINY, share="g", quantizer={"kind": "vq", "bits": 2, "dim": 2})
    shared = fit_shared([chosen] * len(group), group, seed=4)
    assert set(shared) == {
        *("decoder_codes", "decoder_scales", "decoder_values"),
        *("codebook", "codebook_scale"),
    }
    again = fit_shared([chosen] * len(group), group, seed=4)
    assert all(torch.equal(shared[role], again[role]) for role in shared)
    for matrix in group:
        shape = (matrix.shape[0], matrix.shape[1])
        own = encode_matrix(chosen, matrix, seed=1, source_dtype="f32", shared=shared)
        assert set(own.sections) == {"level", "codes"}
        decoded = decode_matrix(chosen, shape, "f32", own.sections | shared, dtype=torch.float32)
        measured = float((decoded - matrix).norm() / matrix.norm())
        assert measured == pytest.approx(own.relative_error, rel=1e-5)


def test_a_group_learns_together_and_its_members_from_it() -> None:
    whole = decoded_by_chance(stage(SMALL), (2, 4))
    group = [whole[:, :32].contiguous(), 3 * whole[:, 32:] + 1]
    chosen = plan(
        SMALL,
        fields={"epochs": 80},
        share="g",
        quantizer={"kind": "none", "dtype": "float16"},
    )
    shared = fit_shared([chosen] * len(group), group, seed=4)
    for matrix in group:
        own = encode_matrix(chosen, matrix, seed=1, source_dtype="f32", shared=shared)
        assert own.relative_error < 0.2


def test_a_matrix_of_equal_weights_is_exact() -> None:
    encoded = encode_matrix(PLANS["plain"], torch.full((8, 8), 0.5), seed=1, source_dtype="f32")
    assert encoded.relative_error < 0.05


def test_a_training_that_diverges_says_so(gaussian, monkeypatch) -> None:
    decode = net.decode
    monkeypatch.setattr(net, "decode", lambda *args: decode(*args) * torch.inf)
    with pytest.raises(CodecError, match="diverged"):
        encode_matrix(PLANS["plain"], gaussian(16, 16), seed=1, source_dtype="f32")
