"""Vectors of a matrix, codebooks, and codes."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics.codebooks import read_codebook, store_codebook
from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.quantizers import vector_grid
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.errors import CodecError

SHAPES = [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)]


def quantizer(bits, dim, axis="rows", dtype="float16"):
    return {"kind": "vq", "bits": bits, "dim": dim, "axis": axis, "dtype": dtype}


def slow_vectors(weight, dim, axis):
    """Vectors in the order of the grid of codes, padded with zeros."""
    p, q = weight.shape
    vectors = []
    if axis == "rows":
        for top, j in itertools.product(range(0, p, dim), range(q)):
            vectors.append([float(weight[i, j]) if i < p else 0.0 for i in range(top, top + dim)])
    else:
        for i, left in itertools.product(range(p), range(0, q, dim)):
            vectors.append([float(weight[i, j]) if j < q else 0.0 for j in range(left, left + dim)])
    return torch.tensor(vectors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", ["rows", "cols"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("per", [None, "tensor", "row", "column", "block"])
def test_vectors_and_weights_by_plain_loops(shape, axis, dim, per, gaussian, plan_of, monkeypatch):
    monkeypatch.setattr(vector_grid, "CHUNK", 64)
    weight = gaussian(*shape)
    params = plan_of(quantizer=quantizer(2, dim, axis)).quantizer
    field = None
    if per is not None:
        stage = plan_of(scales={"kind": "absmax", "per": per, "block": 12}).scales
        field = codec_of(stage).decoder(
            stage, shape, codec_of(stage).encode(stage, weight), torch.float32
        )
    vectors = vector_grid.MatrixVectors(params, weight, field)
    expected = slow_vectors(weight, dim, axis)
    inside = slow_vectors(torch.ones(shape), dim, axis)
    expected_weights = inside
    if per not in (None, "tensor"):
        expected_weights = slow_vectors(
            (field.rows(0, shape[0]) / field.scale.max()).square(), dim, axis
        )
    assert vectors.count == len(expected)

    def check(values, weights, index):
        assert torch.equal(values, expected[index])
        found = torch.ones(1) if weights is None else weights
        found = found[:, None] if found.dim() == 1 else found
        torch.testing.assert_close(found.expand(values.shape), expected_weights[index])

    seen = 0
    for first, values, weights in vectors.chunks():
        assert first == seen
        check(values, weights, slice(first, first + len(values)))
        seen += len(values)
    assert seen == vectors.count
    index = torch.arange(vectors.count).flip(0)
    check(*vectors.pick(index), index)


TYPES = [("rows", "float32"), ("cols", "bfloat16"), ("rows", "float16")]

WORDS = [
    quantizer(bits, dim, axis, dtype)
    for (bits, dim), axis, dtype in itertools.product(
        [(1, 1), (2, 4), (3, 2), ("5/2", 2), (2, 3), (1, 11)],
        ["rows", "cols"],
        ["int8"],
    )
] + [quantizer(2, 2, axis, dtype) for axis, dtype in TYPES]


@pytest.mark.parametrize(
    "words", WORDS, ids=lambda w: f"{w['bits']}-{w['dim']}-{w['axis']}-{w['dtype']}"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_battery(words, shape, gaussian, plan_of, check_codec):
    plan = plan_of(scales={"kind": "rms", "per": "row"}, quantizer=words)
    assert check_codec(plan, gaussian(*shape)).relative_error < 0.7


@pytest.mark.parametrize("axis", ["rows", "cols"])
@pytest.mark.parametrize("per", ["row", "column", "block"])
def test_codes_are_the_best_in_weight_space(axis, per, gaussian, plan_of):
    weight = gaussian(30, 22) * (1 + torch.arange(22.0)) * (1 + torch.arange(30.0)[:, None])
    plan = plan_of(
        scales={"kind": "absmax", "per": per, "block": 9}, quantizer=quantizer(2, 3, axis)
    )
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    sections = encoded.sections
    field = codec_of(plan.scales).decoder(plan.scales, (30, 22), sections, torch.float32)
    wide = field.rows(0, 30)
    z = slow_vectors(weight / wide, 3, axis).double()
    s = slow_vectors(wide, 3, axis).double()
    words = sections["codebook"].double()
    errors = ((z[:, None] - words[None]) * s[:, None]).square().sum(2)
    codes = unpack(sections["codes"], 6, len(z)).long()
    chosen = errors.gather(1, codes[:, None])[:, 0]
    assert (chosen <= errors.amin(1) * (1 + 1e-4) + 1e-6).all()
    total = float(weight.double().square().sum())
    assert encoded.relative_error**2 * total == pytest.approx(float(chosen.sum()), rel=1e-4)


def test_better_than_normal_float_at_equal_bits(gaussian, plan_of, check_codec):
    weight = gaussian(256, 256)
    absmax = {"kind": "absmax", "block": 64}
    flat = plan_of(scales=absmax, quantizer={"kind": "normal_float", "bits": 2})
    vector = plan_of(scales=absmax, quantizer=quantizer(2, 4))
    nf, found = (check_codec(plan, weight).relative_error for plan in (flat, vector))
    assert found**2 < 0.4 * nf**2


@pytest.mark.parametrize(("bits", "dim", "mse"), [(2, 1, 0.119), (2, 2, 0.110), (2, 4, 0.0978)])
def test_published_errors_under_absmax(bits, dim, mse, gaussian, plan_of):
    plan = plan_of(scales={"kind": "absmax", "block": 64}, quantizer=quantizer(bits, dim))
    encoded = encode_matrix(plan, gaussian(512, 512), seed=1, source_dtype="f32")
    assert encoded.relative_error**2 <= mse * 1.01


def test_a_given_codebook_is_used_as_it_is(gaussian, plan_of):
    plan = plan_of(quantizer=quantizer(2, 2, "cols", "float32"), share="attention")
    codebook = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    encoded = encode_matrix(
        plan, gaussian(8, 16), seed=0, source_dtype="f32", shared={"codebook": codebook}
    )
    assert list(encoded.sections) == ["codes"]
    back = decode_matrix(
        plan, (8, 16), "f32", encoded.sections | {"codebook": codebook}, dtype=torch.float32
    )
    words = {tuple(word) for word in codebook.tolist()}
    assert {tuple(pair) for pair in back.view(-1, 2).tolist()} <= words


def test_overflow_of_the_codebook_is_refused(plan_of):
    plan = plan_of(quantizer=quantizer(1, 1))
    with pytest.raises(CodecError, match="codebook values up to 100000 overflow float16"):
        encode_matrix(plan, torch.full((2, 2), 1e5), seed=0, source_dtype="f32")


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_int8_codewords_are_integers_times_one_scale(size, gaussian, plan_of):
    params = plan_of(quantizer=quantizer(2, 2, dtype="int8")).quantizer
    words = gaussian(16, 2).clamp(-1, 1) * size
    sections = store_codebook(params.dtype, words)
    codes, scale = sections["codebook"], sections["codebook_scale"]
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (1,))
    largest = float(words.abs().max())
    assert int(codes.abs().max()) == 127
    assert float(scale) * 127 == pytest.approx(largest)
    back = read_codebook(sections, words, torch.float32)
    assert torch.equal(back, codes.float() * scale)
    assert float((back - words).abs().max()) <= largest / 254 * (1 + 1e-6)


def test_vectors_are_assigned_to_the_codewords_as_rounded(plan_of):
    """Rounding moves 0.6 to 1 and -0.1 to 0: so 0.4 is nearer to 0."""
    params = plan_of(quantizer=quantizer(2, 1, dtype="int8")).quantizer
    sections = store_codebook(params.dtype, torch.tensor([[-127.0], [-0.1], [0.6], [127.0]]))
    assert sections["codebook"].flatten().tolist() == [-127, 0, 1, 127]
    plan = plan_of(quantizer=quantizer(2, 1, dtype="int8"), share="all")
    weight = torch.tensor([[0.4, 0.9, 127.0, -100.0]])  # by the words before rounding: 2, 2, 3, 0
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32", shared=sections)
    assert unpack(encoded.sections["codes"], 2, 4).tolist() == [1, 2, 3, 0]


def test_a_codebook_of_zeros_has_a_scale(plan_of):
    params = plan_of(quantizer=quantizer(2, 2, dtype="int8")).quantizer
    sections = store_codebook(params.dtype, torch.zeros(16, 2))
    assert float(sections["codebook_scale"]) == 1
    assert not sections["codebook"].any()


def test_int8_costs_next_to_nothing(gaussian, plan_of):
    """Half the bytes of float16; what rounding adds is a part in a thousand of the error."""
    weight = gaussian(256, 256)
    errors = {}
    for dtype in ("int8", "float16"):
        plan = plan_of(scales={"kind": "rms"}, quantizer=quantizer(2, 4, dtype=dtype))
        errors[dtype] = encode_matrix(plan, weight, seed=0, source_dtype="f32").relative_error
    assert errors["int8"] ** 2 < errors["float16"] ** 2 * 1.002
