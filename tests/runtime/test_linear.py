"""The layer in its parts is the decoded matrix, and only its parts have gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.planning.learnable import LearnableSection
from reallm_compiler.runtime import TunedLinear
from reallm_compiler.runtime.learned import LearnedSection, TrackedMatrix
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of


def parts(p: int = 12, q: int = 20, r: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "coded": torch.randn(p, q, generator=generator),
        "left": torch.randn(p, r, generator=generator),
        "right": torch.randn(r, q, generator=generator),
        "gain": torch.rand(p, generator=generator) + 0.5,
        "column_gain": torch.rand(q, generator=generator) + 0.5,
        "bias": torch.randn(p, generator=generator),
    }


def obvious(given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight as the formula has it, in float64."""
    weight = given["coded"].double()
    if "column_gain" in given:
        weight = weight * given["column_gain"].double()
    if "left" in given:
        weight = weight + given["left"].double() @ given["right"].double()
    if "gain" in given:
        weight = given["gain"].double()[:, None] * weight
    return weight


@pytest.mark.parametrize(
    "names",
    [
        ("coded",),
        ("coded", "bias"),
        ("coded", "left", "right"),
        ("coded", "gain"),
        ("coded", "left", "right", "gain", "bias"),
        ("coded", "column_gain"),
        ("coded", "left", "right", "gain", "column_gain", "bias"),
    ],
    ids=lambda names: "+".join(names),
)
def test_it_computes_with_the_whole_weight(names: tuple[str, ...]) -> None:
    given = {name: value for name, value in parts().items() if name in names}
    layer = TunedLinear(**given)
    weight = obvious(given)
    assert torch.allclose(layer.weight.double(), weight, atol=1e-5)
    inputs = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(2))
    wanted = functional.linear(inputs.double(), weight, given.get("bias", torch.zeros(12)).double())
    assert torch.allclose(layer(inputs).double(), wanted, atol=1e-4)


def test_gradients_are_those_with_norms_held_fixed() -> None:
    given = parts()
    layer = TunedLinear(**given)
    inputs = torch.randn(7, 20, generator=torch.Generator().manual_seed(2))
    layer(inputs).square().sum().backward()
    left, right = (given[name].double().requires_grad_() for name in ("left", "right"))
    columns = given["column_gain"].double().requires_grad_()
    total = given["coded"].double() * columns + left @ right
    magnitude = (given["gain"].double() * total.norm(dim=1)).detach().requires_grad_()
    weight = (magnitude / total.norm(dim=1).detach())[:, None] * total
    functional.linear(inputs.double(), weight, given["bias"].double()).square().sum().backward()
    pairs = ((layer.l1, left), (layer.l2, right), (layer.magnitude, magnitude))
    for mine, wanted in (*pairs, (layer.column_gain, columns)):
        assert torch.allclose(mine.grad.double(), wanted.grad, rtol=1e-3, atol=1e-3)


def test_only_the_parts_are_parameters() -> None:
    layer = TunedLinear(**parts())
    assert {name for name, _ in layer.named_parameters()} == {
        *("l1", "l2", "magnitude", "column_gain")
    }
    assert not layer.coded.requires_grad
    assert not layer.bias.requires_grad


def test_a_row_keeps_its_magnitude_when_the_factors_change() -> None:
    given = parts()
    layer = TunedLinear(**given)
    inputs = torch.eye(20)
    layer(inputs)
    with torch.no_grad():
        layer.l1.mul_(2)
    before, changed = obvious(given), obvious({**given, "left": 2 * given["left"]})
    changed *= (before.norm(dim=1) / changed.norm(dim=1))[:, None]
    assert torch.allclose((layer(inputs) - layer.bias).T.double(), changed, atol=1e-4)
    # What is stored gives the same rows without a norm.
    stored = layer.parts()
    again = obvious(
        {
            "coded": given["coded"],
            "column_gain": stored["column_gain"],
            "left": stored["l1"],
            "right": stored["l2"],
            "gain": stored["gain"],
        }
    )
    assert torch.allclose(again, changed, atol=1e-5)
    layer.set_parts(None, None, given["gain"])
    bare = obvious({"coded": given["coded"], "gain": given["gain"]})
    assert torch.allclose((layer(inputs) - layer.bias).T.double(), bare, atol=1e-4)


def test_a_row_of_zeros_stays_zero() -> None:
    layer = TunedLinear(torch.zeros(2, 4), gain=torch.ones(2))
    assert torch.equal(layer.weight, torch.zeros(2, 4))
    assert torch.equal(layer(torch.ones(1, 4)), torch.zeros(1, 2))


def test_it_computes_in_the_type_of_its_inputs() -> None:
    layer = TunedLinear(**parts())
    assert layer(torch.ones(1, 20, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.l1.dtype == torch.float32


@pytest.mark.parametrize("factors", [False, True])
def test_gains_that_are_not_learned_are_constants(factors: bool) -> None:
    given = parts()
    if not factors:
        del given["left"], given["right"]
    layer = TunedLinear(**given, fixed_gain=True)
    assert "magnitude" not in dict(layer.tuned())
    assert torch.allclose(layer.weight.double(), obvious(given), atol=1e-5)
    if factors:
        with torch.no_grad():
            layer.l1.mul_(2)
        given["left"] = 2 * given["left"]
        assert torch.allclose(layer.weight.double(), obvious(given), atol=1e-5)
    assert torch.equal(layer.parts()["gain"], given["gain"])


def test_a_coded_part_that_is_learned() -> None:
    """Scales of rows and factors of one layer, by plain autograd."""
    params = MatrixPlan.model_validate(
        {"scales": {"kind": "rms", "per": "row"}, "quantizer": {"kind": "vq", "bits": 2, "dim": 2}}
    )
    sections = encode_matrix(params, parts()["coded"], seed=0, source_dtype="f32").sections
    layout = layout_of(params, (12, 20), "f32")
    spec = next(one for one in layout.sections if one.role == "scales")
    known = LearnableSection(name="matrix:m/scales", spec=spec, group="scales", owner="m")
    scales = sections.pop("scales")
    learned = LearnedSection(known, scales, None)
    learned.theta.requires_grad_(True)
    given = parts()
    given["coded"] = TrackedMatrix(layout, sections, {"scales": learned})
    layer = TunedLinear(**given)
    inputs = torch.randn(7, 20, generator=torch.Generator().manual_seed(2))
    layer(inputs).square().sum().backward()

    plain = decode_matrix(
        params, (12, 20), "f32", {**sections, "scales": scales}, dtype=torch.float32
    )
    theta = (scales / learned.unit).requires_grad_()
    left, right = (given[name].clone().requires_grad_() for name in ("left", "right"))
    coded = plain / scales[:, None] * (theta * learned.unit)[:, None]
    weight = given["gain"][:, None] * (coded * given["column_gain"] + left @ right)
    functional.linear(inputs, weight, given["bias"]).square().sum().backward()
    assert torch.allclose(layer.weight, weight.detach(), atol=1e-5)
    for mine, wanted in ((learned.theta, theta), (layer.l1, left), (layer.l2, right)):
        assert torch.allclose(mine.grad, wanted.grad, rtol=1e-3, atol=1e-3)
