"""One row by itself, as a lookup in an embedding decodes it."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs import MatrixDecoder, encode_matrix
from reallm_compiler.codecs.numerics.packing import rows_per_byte
from reallm_compiler.recipe import Candidate, list_shipped, load_recipe, resolve
from reallm_compiler.storage.matrix import layout_of

ROW, TENSOR = {"kind": "absmax", "per": "row"}, {"kind": "rms"}
ROTATED = [{"kind": "hadamard", "sides": "columns"}]
BLOCK = {"kind": "absmax", "block": 24, "bits": 8}
UNIFORM = {"kind": "uniform", "bits": 4}
COLUMNS = {"kind": "vq", "bits": 2, "dim": 2, "axis": "cols"}
PLANS = {
    "uniform": ({"scales": ROW, "quantizer": UNIFORM}, 24, 1),
    "uniform, ragged": ({"scales": ROW, "quantizer": {**UNIFORM, "bits": 3}}, 23, 8),
    "uniform, nibbles": ({"scales": ROW, "quantizer": UNIFORM}, 23, 2),
    "uniform, rotated": ({"scales": ROW, "quantizer": UNIFORM, "transform": ROTATED}, 24, 1),
    "minmax": ({"scales": {"kind": "minmax"}, "quantizer": {**UNIFORM, "bits": 8}}, 23, 1),
    "normal_float": ({"scales": BLOCK, "quantizer": {"kind": "normal_float", "bits": 4}}, 48, 1),
    "blocks over rows": ({"scales": BLOCK, "quantizer": {**UNIFORM, "bits": 8}}, 23, 1),
    "vq, columns": ({"scales": TENSOR, "quantizer": COLUMNS}, 24, 1),
    "vq, columns, ragged": ({"scales": TENSOR, "quantizer": COLUMNS}, 23, 1),
    "vq, rows": ({"scales": TENSOR, "quantizer": {**COLUMNS, "axis": "rows"}}, 24, 2),
    "none": ({"quantizer": {"kind": "none", "dtype": "float16"}}, 23, 1),
    "factors and gains": (
        {
            "scales": ROW,
            "quantizer": UNIFORM,
            "residual": {"kind": "low_rank", "rank": 2},
            "dora": True,
        },
        24,
        1,
    ),
    "an order": (
        {"scales": ROW, "quantizer": UNIFORM, "permutation": {"kind": "nearest", "rows": 5}},
        24,
        1,
    ),
}
"""A plan, columns of the matrix, and rows that are decoded for one."""


@pytest.mark.parametrize("name", PLANS)
def test_a_row_alone_is_that_of_the_whole(name, gaussian, plan_of):
    stages, q, step = PLANS[name]
    plan, shape = plan_of(**stages), (21, q)
    sections = encode_matrix(plan, gaussian(*shape), seed=0, source_dtype="f32").sections
    decoder = MatrixDecoder(layout_of(plan, shape, "f32"), sections, torch.float32)
    assert decoder.step == step
    whole = torch.cat([decoder.rows(first, last) for first, last in decoder.panels()])
    for index in range(21):
        # A product of one row of factors may be summed in another order.
        torch.testing.assert_close(decoder.row(index), whole[index], rtol=1e-6, atol=1e-6)
    if "residual" not in stages and "transform" not in stages:
        assert torch.equal(torch.stack([decoder.row(index) for index in range(21)]), whole)


def test_rows_end_at_bytes():
    assert [rows_per_byte(bits) for bits in (8, 16, 12, 4, 6, 7, 1, 24)] == [1, 1, 2, 2, 4, 8, 8, 1]


@pytest.mark.parametrize("name", list_shipped())
def test_embeddings_of_shipped_recipes_are_decoded_row_by_row(name):
    candidates = [
        Candidate(name=role, layer=None, is_matrix=True, coded_by_default=False, role=role,
numel=10**6)
        for role in ("embedding", "head")
    ]  # fmt: skip
    for decision in resolve(load_recipe(name), candidates).values():
        plan, shape = decision.plan, (10, 64)
        assert plan is not None
        sections = encode_matrix(plan, torch.ones(shape), seed=0, source_dtype="bf16").sections
        decoder = MatrixDecoder(layout_of(plan, shape, "bf16"), sections, torch.float32)
        assert decoder.step == 1
