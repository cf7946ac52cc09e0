"""What kinds say of their codes: read as windows they are the weights that the codecs decode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reallm_compiler.codecs import encode_matrix
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.windows import LARGEST, split
from reallm_compiler.kernels.form import Form, form_of
from reallm_compiler.kernels.planes import integer_sums, integers
from reallm_compiler.stages import MatrixPlan

ROW = {"kind": "rms", "per": "row"}
QUANTIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trellis": ({"kind": "trellis", "bits": 2, "state_bits": 7, "paths": 4, "iterations": 1}, ROW),
    "trellis, two widths": (
        {"kind": "trellis", "bits": "35/16", "state_bits": 6, "paths": 4, "iterations": 1},
        ROW,
    ),
    "trellis, float32": (
        {
            "kind": "trellis",
            "bits": 3,
            "state_bits": 5,
            "dtype": "float32",
            "paths": 4,
            "iterations": 1,
        },
        ROW,
    ),
    "trellis, computed": (
        {"kind": "trellis", "bits": 2, "state_bits": 9, "table": "computed", "paths": 4},
        ROW,
    ),
    "trellis, computed, of 16 bits": (
        {"kind": "trellis", "bits": 3, "state_bits": 16, "table": "computed", "paths": 4},
        ROW,
    ),
    "vq of rows": ({"kind": "vq", "bits": 2, "dim": 4, "iterations": 1}, ROW),
    "vq of columns": ({"kind": "vq", "bits": 2, "dim": 2, "axis": "cols", "iterations": 1}, ROW),
    "e8p": ({"kind": "e8p", "bits": 2}, ROW),
    "sums of four codebooks": (
        {"kind": "additive", "codebooks": 4, "code_bits": 4, "dim": 8, "iterations": 1, "beam": 1},
        ROW,
    ),
    "uniform": ({"kind": "uniform", "bits": 3}, {"kind": "absmax", "per": "row"}),
    "uniform on [0, 1]": ({"kind": "uniform", "bits": 5}, {"kind": "minmax", "per": "row"}),
    "normal_float": ({"kind": "normal_float", "bits": 4}, {"kind": "absmax", "per": "row"}),
}


def windows_of(form: Form, codes: torch.Tensor, lines: int, count: int) -> torch.Tensor:
    """int64 [lines, count]: the windows of lines of codes, bit by bit."""
    bits = np.unpackbits(codes.numpy().reshape(lines, -1), axis=1, bitorder="little")
    bits = np.concatenate([np.zeros((lines, 16), bits.dtype), bits], axis=1).astype(np.int64)
    window = form.codes.window
    ends = np.array([form.bits(code + 1) for code in range(count)]) + 16
    return torch.from_numpy(sum(bits[:, ends - window + bit] << bit for bit in range(window)))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("shape", [(13, 48), (5, 80), (8, 128)])
def test_windows_are_the_decoded_weights(name: str, shape: tuple[int, int]) -> None:
    quantizer, scales = QUANTIZERS[name]
    plan = MatrixPlan.model_validate({"quantizer": quantizer, "scales": scales})
    sections = encode_matrix(plan, torch.randn(shape), seed=0, source_dtype="f32").sections
    form = form_of(plan, shape)
    assert form is not None
    codec, range_ = codec_of(plan.quantizer), plan.scales.range
    values = codec.window_values(plan.quantizer, shape, sections, range_)
    lines, count = form.lines(shape), form.line_codes(shape)
    found = windows_of(form, sections["codes"].view(-1), lines, count)  # [lines, codes]
    if values.table is None:
        entries = (found - 2 ** (form.codes.window - 1))[..., None]
    else:
        planes, books = values.table.to(torch.int64), form.codes.books
        assert len(planes) == form.codes.planes
        found = found + (torch.arange(count) % books << form.codes.window)
        entries = (planes[0] if len(planes) == 1 else 254 * planes[0] + planes[1])[found]
        entries = entries.view(lines, count // books, books, -1).sum(2)
    # [lines, codes, dim]
    if form.codes.axis == "rows":
        entries = entries.transpose(1, 2).reshape(-1, count)[: shape[0]]
    else:
        entries = entries.reshape(lines, -1)[:, : shape[1]]
    weights = values.unit * entries + values.shift
    if values.order is not None:
        weights = torch.empty_like(weights).index_copy_(1, values.order, weights)
    if values.factors is not None:
        weights = weights * values.factors
    decoder = codec.decoder(plan.quantizer, shape, sections, torch.float64, range_)
    torch.testing.assert_close(
        weights.to(torch.float64), decoder.rows(0, shape[0]), rtol=1e-6, atol=1e-4
    )


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"quantizer": {"kind": "uniform", "bits": 3}, "scales": {"kind": "absmax", "block": 24}},
        {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}, "scales": {"kind": "rms", "block": 32}},
        {"quantizer": {"kind": "vq", "bits": 2, "dim": 8}, "scales": ROW},
    ],
)
def test_other_plans_have_no_form(words: dict[str, Any]) -> None:
    assert form_of(MatrixPlan.model_validate(words), (64, 128)) is None


def test_short_rows_have_no_form() -> None:
    plan = MatrixPlan.model_validate({"quantizer": {"kind": "uniform", "bits": 3}, "scales": ROW})
    assert form_of(plan, (64, 128)) is not None
    assert form_of(plan, (64, 40)) is None


def test_integers_and_their_planes() -> None:
    x = torch.randn(3, 50)
    x[1] = 0
    whole, scale = integers(x)
    high, low = split(whole)
    assert torch.equal(254 * high.to(torch.int32) + low.to(torch.int32), whole)
    assert int(whole.abs().amax()) == LARGEST
    assert scale[1] == 0
    assert not whole[1].any()
    error = (whole * scale[:, None] - x).abs().amax(1)
    assert bool((error <= 0.51 * scale).all())
    every = torch.arange(-LARGEST, LARGEST + 1)
    assert torch.equal(254 * split(every)[0].long() + split(every)[1].long(), every)


def test_integer_sums_do_not_overflow() -> None:
    entries = torch.full((1, 70_000), 127, dtype=torch.int8)
    activations = torch.full((1, 70_000), LARGEST, dtype=torch.int32)
    assert int(integer_sums(entries, activations)) == 70_000 * 127 * LARGEST
