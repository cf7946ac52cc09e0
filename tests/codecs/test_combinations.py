"""Any stages together: what the schema admits keeps the laws, what it refuses has a reason.

Drawn over residual x transform x autoencoder x permutation x scales x quantizer, own or shared.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reallm_compiler.codecs import check_sections, decode_matrix, encode_matrix, fit_shared
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of

HNERV = st.fixed_dictionaries(
    {
        "kind": st.just("hnerv"),
        "patch": st.sampled_from([4, 6, [8, 4]]),
        "latent": st.sampled_from([[1, 2, 2], [3, 4, 2], [2, 1, 1]]),
        "width": st.sampled_from([1, 3]),
        "min_width": st.just(2),
        "kernel_min": st.sampled_from([1, 3]),
        "kernel_max": st.sampled_from([3, 5]),
        "encoder_width": st.just(3),
        "decoder_bits": st.integers(2, 8),
        "qat": st.booleans(),
        "epochs": st.integers(1, 5),
        "batch": st.sampled_from([1, 2, 100]),
    }
)
RESIDUALS = st.one_of(
    st.just({"kind": "none"}),
    st.fixed_dictionaries(
        {
            "kind": st.just("low_rank"),
            "rank": st.sampled_from([1, "1/4"]),
            "fit": st.sampled_from(["svd", "zero", "alternating"]),
            "order": st.sampled_from(["residual_first", "quantizer_first"]),
            "iterations": st.just(2),
            "dtype": st.sampled_from(["float16", "int8"]),
        }
    ),
)
NORMALIZE = st.fixed_dictionaries(
    {
        "kind": st.just("normalize"),
        "by": st.sampled_from(["absmax", "rms"]),
        "per": st.sampled_from(["tensor", "row", "column", "block"]),
        "block": st.sampled_from([2, 7, 64]),
        "bits": st.sampled_from([None, 3, 8]),
        "superblock": st.sampled_from([2, 256]),
    }
)
HADAMARD = st.fixed_dictionaries(
    {
        "kind": st.just("hadamard"),
        "sides": st.sampled_from(["both", "rows", "columns"]),
        "block": st.sampled_from([2, 8]),
    }
)
HADAMARD = st.fixed_dictionaries(
    {
        "kind": st.just("hadamard"),
        "sides": st.sampled_from(["both", "rows", "columns"]),
        "block": st.sampled_from([2, 4, 128]),
    }
)
SCALES = st.one_of(
    st.just({"kind": "none"}),
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["rms", "absmax", "minmax"]),
            "per": st.sampled_from(["tensor", "row", "column", "block"]),
            "block": st.sampled_from([2, 7, 64]),
            "bits": st.sampled_from([None, 8]),
        }
    ),
)
QUANTIZERS = st.one_of(
    st.just({"kind": "none", "dtype": "float32"}),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["uniform", "normal_float"]), "bits": st.sampled_from([1, 3])}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("vq"),
            "bits": st.sampled_from([1, 2]),
            "dim": st.integers(1, 3),
            "axis": st.sampled_from(["rows", "cols"]),
            "iterations": st.just(2),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("trellis"),
            "bits": st.sampled_from([1, "5/4", 2]),
            "memory": st.sampled_from([3, 5]),
            "iterations": st.just(2),
        }
    ),
)
PLANS = st.fixed_dictionaries(
    {
        "residual": RESIDUALS,
        "transform": st.lists(st.one_of(NORMALIZE, HADAMARD), max_size=2),
        "autoencoder": st.one_of(HNERV, HNERV, st.just({"kind": "identity"})),
        "permutation": st.sampled_from([{"kind": "none"}, {"kind": "nearest", "rows": 4}]),
        "scales": SCALES,
        "quantizer": QUANTIZERS,
        "dora": st.booleans(),
        "share": st.sampled_from([None, None, "g"]),
    }
)
SHAPES = st.sampled_from([(1, 1), (4, 9), (13, 6), (8, 16)])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=PLANS, shape=SHAPES, seed=st.integers(0, 3))
def test_what_the_schema_admits_keeps_its_size_law(words, shape, seed) -> None:
    try:
        plan = MatrixPlan.model_validate(words)
    except ValidationError as error:
        for problem in error.errors():
            assert problem["type"] == "value_error"  # a reason of ours, in words
            assert len(str(problem["ctx"]["error"])) > 30
        return
    assert MatrixPlan.model_validate(plan.plain()) == plan
    assert layout_of(plan, shape, "f32").refusal is None
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    shared = fit_shared(plan, [weight, weight.t()], seed=2) if plan.share else {}
    runs = [
        encode_matrix(plan, weight, seed=seed, source_dtype="f32", shared=shared) for _ in range(2)
    ]
    specs = layout_of(plan, shape, "f32").sections
    check_sections({**shared, **runs[0].sections}, specs)
    assert all(torch.isfinite(values.float()).all() for values in runs[0].sections.values())
    for role, values in runs[0].sections.items():
        assert torch.equal(values, runs[1].sections[role]), f"{role} differs in a second run"
    decoded = decode_matrix(plan, shape, "f32", {**shared, **runs[0].sections}, dtype=torch.float64)
    assert torch.isfinite(decoded).all()
    wrong = float(torch.linalg.norm(decoded - weight.double()))
    measured = wrong / float(torch.linalg.norm(weight.double()))
    assert runs[0].relative_error == pytest.approx(measured, rel=1e-9)
