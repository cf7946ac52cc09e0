"""Compiled kernels: the weights that the codecs decode, and integer sums that nothing changes."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.errors import FormatError
from reallm_compiler.kernels import jit, threads
from reallm_compiler.kernels.choose import product_for
from reallm_compiler.kernels.compiled import CompiledProduct, compiled_product, product_by
from reallm_compiler.kernels.form import form_of
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.kernels.planes import further_integers, integer_sums, integers
from reallm_compiler.kernels.sides import sides_of
from reallm_compiler.kernels.targets import FEW_TOKENS, MOST_TOKENS, TARGETS, runs_here
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.kernels.test_windows import QUANTIZERS, ROW
from tests.plans import some_plan

CPU = torch.device("cpu")
HERE = [name for name in TARGETS if emit.available() and runs_here(name)]
"""Targets that run here; tests of kernels are skipped where there is none."""

HADAMARD = {"kind": "hadamard", "sides": "both", "block": 128}
BY_COLUMN = {"kind": "normalize", "per": "column", "bits": None}
BY_ROW = {"kind": "normalize", "per": "row", "bits": None}
TRELLIS = QUANTIZERS["trellis, two widths"][0]
PLANS: dict[str, dict[str, Any]] = {
    **{
        name: {"quantizer": words, "scales": scales} for name, (words, scales) in QUANTIZERS.items()
    },
    "trellis, rotated, with factors": {
        "quantizer": TRELLIS,
        "scales": {"kind": "rms", "per": "tensor"},
        "transform": [HADAMARD],
        "residual": {"kind": "low_rank", "rank": 5},
        "dora": True,
    },
    "vq, scaled and rotated, with int8 factors": {
        "quantizer": QUANTIZERS["vq of rows"][0],
        "scales": ROW,
        "transform": [BY_COLUMN, HADAMARD],
        "residual": {"kind": "low_rank", "rank": 20, "dtype": "int8"},
    },
    "vq, permuted, rotated and scaled": {
        "quantizer": QUANTIZERS["vq of columns"][0],
        "scales": {"kind": "rms", "per": "column"},
        "permutation": {"kind": "nearest", "rows": "all"},
        "transform": [HADAMARD, BY_ROW],
    },
    "uniform, blocks with zero points": {
        "quantizer": {"kind": "uniform", "bits": 4},
        "scales": {"kind": "minmax", "block": 16, "dtype": "float16"},
    },
    "vq, blocks of rows": {
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4, "iterations": 1},
        "scales": {"kind": "absmax", "block": 64, "bits": 8, "superblock": 4},
    },
    "vq of two rows, blocks with zero points": {
        "quantizer": {"kind": "vq", "bits": 3, "dim": 2, "iterations": 1},
        "scales": {"kind": "minmax", "block": 128, "dtype": "bfloat16"},
    },
    "vq, blocks, orders of groups of rows": {
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4, "iterations": 1},
        "scales": {"kind": "absmax", "block": 64, "bits": 8, "superblock": 4},
        "permutation": {"kind": "nearest", "rows": 8},
        "residual": {"kind": "low_rank", "rank": 2},
        "dora": True,
    },
    "uniform, orders of groups of rows, outliers": {
        "residual": {"kind": "sparse", "fraction": "1/20", "by": "magnitude"},
        "quantizer": {"kind": "uniform", "bits": 3},
        "scales": {"kind": "minmax", "per": "row"},
        "permutation": {"kind": "nearest", "rows": 5},
        "transform": [{"kind": "hadamard", "sides": "both", "block": 16}],
    },
    "uniform, two levels of scales": {
        "quantizer": {"kind": "uniform", "bits": 3},
        "scales": {"kind": "minmax", "block": 16, "bits": 8, "superblock": 20},
    },
    "normal_float, two levels, rotated": {
        "quantizer": {"kind": "normal_float", "bits": 4},
        "scales": {"kind": "absmax", "block": 64, "bits": 8},
        "transform": [HADAMARD],
        "residual": {"kind": "low_rank", "rank": 1},
    },
    "uniform, integer zero points": {
        "quantizer": {"kind": "uniform", "bits": 2},
        "scales": {"kind": "affine", "code_bits": 2, "block": 16, "dtype": "float16"},
        "permutation": {"kind": "norm_sorted", "sides": "columns"},
    },
    "uniform, integer zero points of 3 bits": {
        "quantizer": {"kind": "uniform", "bits": 3},
        "scales": {"kind": "affine", "code_bits": 3, "block": 64, "dtype": "float16"},
    },
    "uniform, integer zero points, two levels": {
        "quantizer": {"kind": "uniform", "bits": 4},
        "scales": {
            "kind": "affine",
            "code_bits": 4,
            "block": 16,
            "bits": 5,
            "superblock": 8,
            "offset": "superblock",
            "dtype": "bfloat16",
        },
    },
    "uniform, symmetric": {
        "quantizer": {"kind": "uniform", "bits": 4},
        "scales": {"kind": "affine", "code_bits": 4, "symmetric": True, "block": 16},
    },
    "uniform, integer zero points of rows": {
        "quantizer": {"kind": "uniform", "bits": 5},
        "scales": {"kind": "affine", "code_bits": 5, "per": "row"},
    },
    "uniform, levels of their own": {
        "quantizer": {"kind": "uniform", "bits": 3},
        "scales": {
            "kind": "minmax",
            "block": 16,
            "bits": 3,
            "superblock": 16,
            "zero_bits": 7,
            "zero_superblock": 4,
            "offset": "superblock",
            "dtype": "float16",
        },
    },
    "e8p, the rest coded by words, rotated": {
        "quantizer": {"kind": "e8p", "bits": 3},
        "scales": {"kind": "rms", "per": "tensor"},
        "transform": [HADAMARD],
    },
    "e8p twice, with gains": {
        "quantizer": {"kind": "e8p", "bits": 4},
        "scales": ROW,
        "residual": {"kind": "low_rank", "rank": 5},
        "dora": True,
    },
    "uniform, outliers, int8 factors and gains": {
        "quantizer": {"kind": "uniform", "bits": 3},
        "scales": {"kind": "absmax", "block": 16},
        "residual": [
            {"kind": "sparse", "fraction": "1/20", "by": "magnitude"},
            {"kind": "low_rank", "rank": 3, "dtype": "int8"},
        ],
        "dora": True,
    },
    "normal_float, monarch": {
        "quantizer": {"kind": "normal_float", "bits": 3},
        "scales": ROW,
        "residual": {"kind": "monarch", "dtype": "int8"},
    },
    "uniform, long blocks": {
        "quantizer": {"kind": "uniform", "bits": 8},
        "scales": {"kind": "absmax", "block": 320, "dtype": "bfloat16"},
    },
}
LONG = {
    "uniform, long blocks": (9, 640),
    "normal_float, two levels, rotated": (20, 192),
    "vq, blocks of rows": (14, 192),
    "vq, blocks, orders of groups of rows": (30, 192),
    "vq of two rows, blocks with zero points": (5, 256),
    "uniform, integer zero points of 3 bits": (9, 192),
    "uniform, levels of their own": (9, 256),
}
SOME = [
    "trellis, two widths",
    "vq of rows",
    "vq of columns",
    "normal_float, two levels, rotated",
    "uniform, blocks with zero points",
    "vq, blocks, orders of groups of rows",
]
SHAPES = [(13, 80), (24, 128)]


def made(packed: PackedMatrix, target: str, dtype: torch.dtype = torch.float32) -> Any:
    form = form_of(packed.plan, packed.shape)
    assert form is not None
    if not TARGETS[target].fits(form):
        pytest.skip("kernels of another target do this form")
    product = product_by(packed, form, dtype, target)
    assert product is not None
    return product


@cache
def packed_of(name: str, shape: tuple[int, int]) -> PackedMatrix:
    plan = MatrixPlan.model_validate(PLANS[name])
    packed = packed_matrix(plan, shape, column_gain="residual" in PLANS[name])
    assert packed is not None
    return packed


def activations(count: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, columns, generator=generator)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", PLANS)
def test_products_are_those_of_decoded_weights(name: str, target: str) -> None:
    for shape in [LONG[name]] if name in LONG else SHAPES:
        packed = packed_of(name, shape)
        product, weight = made(packed, target), dense(packed)
        # By codes, and, once for each plan, by panels.
        for tokens in (1, MOST_TOKENS + 1) if shape[1] != 128 else (1,):
            x = activations(tokens, shape[1])
            assert distance(product.linear(x), x.double() @ weight.t()) < 1e-4


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(draw=st.integers(0, 2**32 - 1), shape=st.sampled_from([(5, 80), (33, 48), (64, 64)]))
def test_any_stages_together(draw: int, shape: tuple[int, int]) -> None:
    """Whatever kernels take of the plans that can be drawn."""
    plan = some_plan(random.Random(draw))
    note(f"plan: {plan.plain()}")
    if form_of(plan, shape) is None:
        return
    packed = packed_matrix(plan, shape, column_gain=draw % 2 == 1)
    product = None if packed is None else compiled_product(packed, CPU, torch.float32)
    if packed is None or product is None:
        return
    weight = dense(packed)
    x, g = activations(MOST_TOKENS + 1, shape[1]), activations(2, shape[0])
    # Errors are held against the size of what was added: sums of large terms may cancel.
    scale = 1e-4 * float(weight.norm()) + 1e-30
    for some in (x[:1], x):
        wrong = product.linear(some) - some.double() @ weight.t()
        assert float(wrong.norm()) < scale * float(some.norm())
    assert float((product.transposed(g) - g.double() @ weight).norm()) < scale * float(g.norm())


@pytest.mark.parametrize("name", PLANS)
def test_gradients_are_those_of_decoded_weights(name: str) -> None:
    packed = packed_of(name, LONG.get(name, SHAPES[0]))
    product, weight = product_for(packed, CPU, torch.float32), dense(packed)
    x = activations(3, packed.shape[0])
    assert distance(product.transposed(x), x.double() @ weight) < 1e-4
    assert product.transposed(x[:0]).shape == (0, packed.shape[1])


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_narrow_types(target: str, dtype: torch.dtype) -> None:
    packed = packed_of("trellis, rotated, with factors", (72, 80))
    x = activations(MOST_TOKENS + 1, 80).to(dtype)
    product, form = made(packed, target, dtype), form_of(packed.plan, packed.shape)
    (sides,) = sides_of(packed, form)
    wide = CompiledProduct(packed, form, sides, torch.float32, target, exact=False)
    found, wanted = product.linear(x[:2]), wide.linear(x[:2].float()).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)
    many = product.linear(x)
    assert many.dtype == dtype
    assert distance(many, x.double() @ dense(packed).t()) < 1e-2
    assert product.linear(x[:0]).shape == (0, 72)


@pytest.mark.parametrize("target", HERE)
def test_panels_are_as_many_as_there_must_be(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_of("vq of rows", (520, 80))
    x = activations(MOST_TOKENS + 1, 80)
    wanted = made(packed, target).linear(x)
    monkeypatch.setattr("reallm_compiler.kernels.compiled_many.PANEL_BYTES", 1)
    assert distance(made(packed, target).linear(x), wanted) < 1e-6


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_sums_are_the_exact_integers(name: str, target: str) -> None:
    """y = s_x (s S + z X) to the last bit, with sums of integers by torch; twice for float32."""
    shape = (24, 128)
    packed = packed_of(name, shape)
    form = form_of(packed.plan, packed.shape)
    if not TARGETS[target].fits(form):
        pytest.skip("kernels of another target do this form")
    (sides,) = sides_of(packed, form)
    values = sides.values
    decoder = dense(packed) / 1.0
    x = activations(1, 128)
    ordered = x if sides.order is None else x[:, sides.order[sides.order < 128]]
    if sides.order_factors is not None:
        ordered = ordered * sides.order_factors[sides.order < 128]
    weight = decoder if sides.order is None else decoder[:, sides.order[sides.order < 128]]
    if sides.order_factors is not None:
        weight = weight / sides.order_factors[sides.order < 128]
    scales, shifts = sides.row_scales[:24], sides.row_shifts[:24]
    entries = ((weight - shifts[:, None]) / scales[:, None]).round().to(torch.int64)
    terms = []
    for whole, unit in (integers(ordered), further_integers(ordered)):
        total = integer_sums(entries, whole).float()  # [1, 24]
        ones = whole.sum(1, dtype=torch.int64).float()[:, None]
        terms.append((total * scales + ones * shifts) * unit[:, None])
    assert values.unit > 0
    for exact, wanted in ((False, terms[0]), (True, terms[0] + terms[1])):
        product = CompiledProduct(packed, form, sides, torch.float32, target, exact=exact)
        assert torch.equal(product.linear(x), wanted)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", SOME)
def test_results_depend_on_the_token_alone(
    name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the tokens beside it, nor on the number of threads."""
    monkeypatch.setattr("reallm_compiler.kernels.compiled_few.LEAST_FOR_THREADS", 1)
    shape = (200, LONG.get(name, (0, 128))[1])
    packed = packed_of(name, shape)
    product = made(packed, target)
    x = activations(FEW_TOKENS, shape[1])
    together = product.linear(x)
    alone = torch.cat([product.linear(row) for row in x.split(1)])
    assert torch.equal(together, alone)
    before = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(product.linear(x[:1]), together[:1])
            assert torch.equal(product.linear(x), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("target", HERE)
def test_python_threads_do_the_same(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reallm_compiler.kernels.compiled_few.LEAST_FOR_THREADS", 1)
    packed = packed_of("trellis, rotated, with factors", (200, 128))
    x = activations(2, 128)
    wanted = made(packed, target).linear(x)
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "openmp", lambda: None)
    calls: list[int] = []
    shares = threads.run_shares
    monkeypatch.setattr(threads, "run_shares", lambda *given: calls.append(1) or shares(*given))
    try:
        torch.set_num_threads(2)
        assert torch.equal(made(packed, target).linear(x), wanted)
    finally:
        torch.set_num_threads(before)
    assert calls


@pytest.mark.parametrize("target", HERE)
def test_what_is_not_finite_spoils_its_token_alone(target: str) -> None:
    packed = packed_of("uniform", (24, 128))
    x = activations(4, 128)
    wanted = made(packed, target).linear(x)
    x[1, 7], x[2, 100] = torch.inf, torch.nan
    x[3] = 0
    found = made(packed, target).linear(x)
    assert torch.equal(found[0], wanted[0])
    assert bool(found[1:3].isnan().all())
    assert not found[3].any()


@pytest.mark.skipif(not emit.available(), reason="llvmlite is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "trellis",
        "trellis, computed",
        "vq of rows",
        "e8p",
        "normal_float",
        "uniform",
        "uniform, orders of groups of rows, outliers",
    ],
)
def test_kernels_for_arm_are_what_llvm_accepts(name: str) -> None:
    """Machine code is made, though nothing here can run it."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    packed = packed_of(name, (72, 80))
    form = form_of(packed.plan, packed.shape)
    assert TARGETS["neon"].fits(form)
    (first, *_) = sides_of(packed, form)
    target = next(one for one in HERE if TARGETS[one].fits(form))
    product = CompiledProduct(packed, form, first, torch.float32, target)
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(
        cpu="cortex-a76", opt=3
    )
    for work in ("several", "panel"):
        kernel = product._few._kernel(work)
        kernel = replace(kernel, inputs=replace(kernel.inputs, planes=False))
        module = llvm.parse_assembly(jit.source(kernel, "neon"))
        module.verify()
        text = machine.emit_assembly(module)
        assert "smlal" in text or "smull" in text or work == "panel"


def test_lines_are_shared_without_gaps() -> None:
    seen: list[tuple[int, int]] = []
    for lines, count, step in ((1000, 3, 64), (10, 4, 64), (128, 2, 64)):
        seen.clear()
        threads.run_shares(lambda first, last: seen.append((first, last)), lines, count, step)
        covered = sorted(line for first, last in seen for line in range(first, last))
        assert covered == list(range(lines))


def test_without_llvm_products_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_of("trellis", (72, 80))
    monkeypatch.setattr(jit, "targets", lambda: ())
    assert compiled_product(packed, CPU, torch.float32) is None
    product = product_for(packed, CPU, torch.float32)
    assert isinstance(product, PlainProduct)


@pytest.mark.skipif(not jit.targets(), reason="there is no kernel for this processor")
def test_kernels_are_chosen() -> None:
    packed = packed_of("trellis", (72, 80))
    assert isinstance(product_for(packed, CPU, torch.bfloat16), CompiledProduct)
    assert isinstance(product_for(packed, CPU, torch.float64), PlainProduct)


@pytest.mark.parametrize(
    "words",
    [
        {"permutation": {"kind": "norm_sorted", "sides": "rows"}},
        {"permutation": {"kind": "norm_sorted", "sides": "both"}},
        {"quantizer": TRELLIS, "scales": {"kind": "minmax", "per": "row"}},
    ],
)
def test_what_kernels_do_not_do_goes_the_plain_way(words: dict[str, Any]) -> None:
    """Orders of rows, and zero points beside factors of columns."""
    plan = {
        "quantizer": {"kind": "uniform", "bits": 4},
        "scales": {"kind": "absmax", "per": "row"},
        **words,
    }
    packed = packed_matrix(MatrixPlan.model_validate(plan), (72, 80))
    product, x = product_for(packed, CPU, torch.float32), activations(2, 80)
    assert isinstance(product, PlainProduct)
    assert distance(product.linear(x), x.double() @ dense(packed).t()) < 1e-4


@pytest.mark.parametrize("role", ["codes", "codebook", "high_rate", "scales"])
def test_forged_sections_never_reach_a_kernel(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than the form, of another type, in steps, or a mask of too many columns."""
    monkeypatch.setattr("reallm_compiler.kernels.choose.MAKERS", [("cpu", None)])
    packed = packed_of("trellis, two widths", (24, 128))
    whole = packed.sections[role]
    forged = [whole.reshape(-1)[:-1], whole.to(torch.int32)]
    if whole.numel() > 1:
        forged.append(torch.stack([whole, whole], dim=-1)[..., 0])
    if role == "high_rate":
        forged.append(torch.full_like(whole, 255))
    for section in forged:
        wrong = PackedMatrix(form=packed.form, sections={**packed.sections, role: section})
        with pytest.raises(FormatError):
            product_for(wrong, CPU, torch.float32)
