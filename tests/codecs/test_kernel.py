"""The compiled look-ups: bit for bit what torch gives, and when they are taken."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.numerics import emit, kernel
from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.stages import MatrixPlan

needs_kernel = pytest.mark.skipif(
    kernel.compiled(4) is None, reason="llvmlite or a processor with AVX2 is missing"
)

SCALES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["rms", "absmax", "minmax"]),
        "per": st.sampled_from(["tensor", "row", "column", "block"]),
        "block": st.sampled_from([7, 16, 24, 32, 64]),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
        "bits": st.sampled_from([None, 2, 8]),
        "superblock": st.sampled_from([5, 256]),
    }
)


@pytest.fixture
def looked_up(monkeypatch):
    """A list that gets a word for each run of the kernel, for matrices of any size."""
    runs: list[int] = []
    look_up = kernel.look_up

    def spy(tables, codes, bits, out):
        runs.append(bits)
        look_up(tables, codes, bits, out)

    monkeypatch.setattr(kernel, "LEAST", 0)
    monkeypatch.setattr(kernel, "look_up", spy)
    return runs


def both_ways(plan: MatrixPlan, weight, source: str, dtype: torch.dtype):
    """The matrix as the kernel and as torch decode it."""
    shape = (weight.shape[0], weight.shape[1])
    encoded = encode_matrix(plan, weight, seed=0, source_dtype=source)
    decoded = []
    for least in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "LEAST", least)
            decoded.append(decode_matrix(plan, shape, source, encoded.sections, dtype=dtype))
    return decoded


@needs_kernel
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_kernel_looks_every_code_up(bits, groups, steps):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (groups, 16 * steps), generator=generator)
    tables = torch.randn(groups, 2**bits, generator=generator).to(torch.bfloat16)
    out = torch.full((groups, 16 * steps), torch.nan, dtype=torch.bfloat16)
    kernel.look_up(tables, pack(codes, bits), bits, out)
    assert torch.equal(out, tables.gather(1, codes))


@needs_kernel
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_it_writes_no_further_than_its_results(bits):
    memory = torch.zeros(16 + 64 + 16, dtype=torch.float16)
    codes = pack(torch.zeros(64, dtype=torch.int64), bits)
    kernel.look_up(torch.ones(2, 2**bits, dtype=torch.float16), codes, bits, memory[16:80])
    assert torch.equal(memory.nonzero().view(-1), torch.arange(16, 80))


@needs_kernel
@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["uniform", "normal_float"]),
    bits=st.integers(1, 8),
    scales=SCALES,
    shape=st.tuples(st.integers(1, 40), st.sampled_from([1, 7, 16, 30, 48, 64, 96, 128])),
    source=st.sampled_from(["bf16", "f32", "f64"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_any_matrix_decodes_to_the_same_bits(kind, bits, scales, shape, source, dtype, seed):
    if scales["kind"] == "minmax":
        kind = "uniform"  # the only one with levels on [0, 1]
    quantizer = {"kind": kind, "bits": bits}
    plan = MatrixPlan.model_validate({"quantizer": quantizer, "scales": scales})
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[:, ::5] = 0.0
    compiled, plain = both_ways(plan, weight, source, dtype)
    view = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(compiled.view(view), plain.view(view))


@needs_kernel
@pytest.mark.parametrize(
    ("stages", "runs"),
    [
        pytest.param({"scales": {"kind": "absmax"}}, True, id="one level"),
        pytest.param({"scales": {"kind": "absmax", "bits": 8}}, True, id="two levels"),
        pytest.param({"scales": {"kind": "rms", "per": "row"}}, True, id="rows"),
        pytest.param({"scales": {"kind": "absmax", "per": "tensor"}}, True, id="tensor"),
        pytest.param({"scales": {"kind": "minmax"}}, True, id="zero points"),
        pytest.param({"scales": {"kind": "absmax", "per": "column"}}, False, id="columns"),
        pytest.param({"scales": {"kind": "absmax", "block": 40}}, False, id="blocks over rows"),
        pytest.param(
            {"scales": {"kind": "absmax"}, "residual": {"kind": "low_rank", "rank": 1}},
            False,
            id="residual",
        ),
        pytest.param({"scales": {"kind": "absmax"}, "dora": True}, False, id="gains"),
        pytest.param(
            {"scales": {"kind": "absmax"}, "permutation": {"kind": "nearest"}}, False, id="order"
        ),
        pytest.param(
            {"scales": {"kind": "absmax"}, "transform": [{"kind": "hadamard"}]},
            False,
            id="transform",
        ),
    ],
)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_when_it_is_taken(looked_up, gaussian, stages, runs, bits):
    quantizer = {"kind": "uniform", "bits": bits}
    plan = MatrixPlan.model_validate({"quantizer": quantizer, **stages})
    encoded = encode_matrix(plan, gaussian(16, 128), seed=0, source_dtype="bf16")
    assert not looked_up, "measuring the error takes torch's way: it needs no 16-bit results"
    decode_matrix(plan, (16, 128), "bf16", encoded.sections, dtype=torch.bfloat16)
    assert bool(looked_up) == (runs and bits <= 4)


def test_small_matrices_take_the_plain_way(monkeypatch, gaussian, plan_of):
    monkeypatch.setattr(kernel, "compiled", lambda bits: pytest.fail("the kernel was loaded"))
    plan = plan_of(scales={"kind": "absmax"}, quantizer={"kind": "normal_float", "bits": 4})
    encoded = encode_matrix(plan, gaussian(64, 64), seed=0, source_dtype="bf16")
    decode_matrix(plan, (64, 64), "bf16", encoded.sections, dtype=torch.bfloat16)


@pytest.mark.parametrize("error", [ImportError, OSError], ids=["missing", "does not load"])
def test_without_its_library(monkeypatch, gaussian, plan_of, error):
    real = builtins.__import__

    def no_llvmlite(name, *rest, **others):
        if name.startswith("llvmlite"):
            raise error(name)
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", no_llvmlite)
    monkeypatch.setattr(kernel, "LEAST", 0)
    monkeypatch.setattr(kernel, "compiled", kernel.compiled.__wrapped__)
    monkeypatch.setattr(emit, "available", emit.available.__wrapped__)
    plan = plan_of(scales={"kind": "absmax"}, quantizer={"kind": "normal_float", "bits": 4})
    weight = gaussian(64, 64)
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="bf16")
    decoded = decode_matrix(plan, (64, 64), "bf16", encoded.sections, dtype=torch.bfloat16)
    assert Fraction(float((decoded - weight).norm() / weight.norm())) < Fraction(1, 5)


def test_its_library_is_loaded_when_it_is_used_and_not_before():
    program = (
        "import sys, torch, reallm_compiler.codecs as c; "
        "from reallm_compiler.stages import MatrixPlan; "
        "q = {'kind': 'uniform', 'bits': 4}; "
        "p = MatrixPlan.model_validate({'quantizer': q, 'scales': {'kind': 'absmax'}}); "
        "e = c.encode_matrix(p, torch.ones(32, 32), seed=0, source_dtype='bf16'); "
        "c.decode_matrix(p, (32, 32), 'bf16', e.sections, dtype=torch.bfloat16); "
        "sys.exit('llvmlite' in sys.modules)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=paths, check=False).returncode == 0


def test_a_large_result_is_aligned_and_whole(plan_of):
    plan = plan_of(quantizer={"kind": "none"}, scales={"kind": "none"})
    weight = torch.randn(1024, 2049)
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    decoded = decode_matrix(plan, (1024, 2049), "f32", encoded.sections, dtype=torch.float32)
    assert torch.equal(decoded, weight)
    assert decoded.data_ptr() % 64 == 0
    assert decoded.untyped_storage().nbytes() == decoded.nbytes
