"""Pages of keys and values: their size law, each page by itself, and what is read back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.codecs.kv_pages import PageCodec
from reallm_compiler.codecs.kv_states import CachedTokens
from reallm_compiler.codecs.sections import stored_dtype
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import CachedStates
from reallm_compiler.storage.kv_cache import own_sections, page_layout

ROW = {"per": "row", "dtype": "float16"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "uniform, minmax": ({"kind": "uniform", "bits": 8}, {"kind": "minmax", **ROW}),
    "uniform, 3 bits": ({"kind": "uniform", "bits": 3}, {"kind": "minmax", **ROW}),
    "uniform, affine": (
        {"kind": "uniform", "bits": 2},
        {"kind": "affine", "code_bits": 2, "per": "block", "block": 8, "dtype": "float16"},
    ),
    "uniform, clipped": (
        {"kind": "uniform", "bits": 2},
        {"kind": "minmax", "clip": "weights", **ROW},
    ),
    "uniform, two levels": (
        {"kind": "uniform", "bits": 4},
        {"kind": "minmax", **ROW, "bits": 6, "offset": "superblock", "superblock": 8},
    ),
    "normal_float": ({"kind": "normal_float", "bits": 4}, {"kind": "absmax", **ROW}),
    "vq": ({"kind": "vq", "bits": 2, "dim": 2, "axis": "cols"}, {"kind": "rms", **ROW}),
    "vq, rows": ({"kind": "vq", "bits": 2, "dim": 4, "axis": "rows"}, {"kind": "minmax", **ROW}),
    "e8p": ({"kind": "e8p", "bits": 2}, {"kind": "rms", **ROW}),
}
ANGLES = torch.tensor([1.0, 0.1, 0.01])


def states_of(kind: str, rows: str, *, hadamard: bool = False) -> CachedStates:
    quantizer, scales = KINDS[kind]
    return CachedStates.model_validate(
        {"rows": rows, "hadamard": hadamard, "quantizer": quantizer, "scales": scales}
    )


def drawn(batch: int, heads: int, tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    offset = 4 * torch.randn(1, heads, 1, channels, generator=generator)
    return torch.randn(batch, heads, tokens, channels, generator=generator) + offset


@settings(max_examples=30)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.sampled_from(["channels", "tokens"]),
    hadamard=st.booleans(),
    turned=st.booleans(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    pages=st.integers(1, 3),
    page=st.sampled_from([8, 16]),
    channels=st.sampled_from([8, 16]),
)
def test_pages_are_as_large_as_the_law_says_and_stand_alone(
    kind, rows, hadamard, turned, batch, heads, pages, page, channels
):
    states = states_of(kind, rows, hadamard=hadamard)
    codec = PageCodec("keys", states, page, heads, channels, angles=ANGLES if turned else None)
    x = drawn(batch, heads, pages * page, channels)
    sections = codec.encode(x.clone())
    specs = own_sections(page_layout(states, page, heads, channels))
    assert set(sections) == {spec.role for spec in specs}
    for spec in specs:
        tensor = sections[spec.role]
        assert tensor.dtype == stored_dtype(spec)
        assert tensor[0, 0].numel() * tensor.element_size() == spec.nbytes
        assert tensor.shape[:2] == (pages, batch)
    decoded = codec.decode(sections, torch.float32)
    assert decoded.shape == x.shape
    assert float((decoded - x).square().mean() / x.square().mean()) < 0.3
    first = codec.encode(x[-1:, :, :page].clone())  # one page of one sequence, by itself
    for role, section in first.items():
        assert torch.equal(section[0, 0], sections[role][0, -1])


def test_states_are_not_changed_by_coding():
    codec = PageCodec("values", states_of("uniform, minmax", "tokens"), 8, 1, 8)
    x = drawn(1, 1, 8, 8)
    before = x.clone()
    codec.encode(x)
    assert torch.equal(x, before)


def rotated(x: torch.Tensor, angles: torch.Tensor, first: int) -> torch.Tensor:
    """Keys at positions first, first + 1, ... by complex numbers."""
    half = len(angles)
    turns = torch.polar(torch.ones(()), torch.arange(first, first + x.shape[2])[:, None] * angles)
    z = torch.complex(x[..., :half], x[..., half : 2 * half]) * turns
    return torch.cat([z.real, z.imag, x[..., 2 * half :]], dim=-1)


def test_keys_of_a_page_are_alike_before_the_rotary_embedding():
    """Keys that differ by their positions alone are coded without an error, wherever they begin."""
    states = states_of("uniform, minmax", "channels")
    same = drawn(1, 2, 1, 8).expand(1, 2, 32, 8)
    keys = rotated(same, ANGLES, first=13)
    errors = []
    for angles in (ANGLES, None):
        codec = PageCodec("keys", states, 16, 2, 8, angles=angles)
        errors.append(float((codec.decode(codec.encode(keys), torch.float32) - keys).abs().max()))
    before, after = errors
    assert before < 4e-3 < after


@pytest.mark.parametrize(
    ("scales", "what"),
    [
        ({"kind": "minmax", "per": "tensor", "dtype": "float16"}, "scales"),
        ({"kind": "minmax", "per": "block", "block": 48, "dtype": "float16"}, "scales"),
        ({"kind": "minmax", "per": "row", "bits": 8}, "scales"),
    ],
)
def test_pages_that_do_not_stand_alone_are_refused(scales, what):
    states = CachedStates.model_validate(
        {"rows": "tokens", "quantizer": {"kind": "uniform", "bits": 2}, "scales": scales}
    )
    with pytest.raises(CodecError, match=f"do not store their {what}") as caught:
        PageCodec("values", states, 8, 1, 8)
    assert caught.value.location == "kv_cache.values"
    assert "superblock" in (caught.value.hint or "")


def cached(tokens: int = 40, first: int = 3) -> tuple[CachedTokens, torch.Tensor]:
    x = drawn(2, 1, tokens, 8)
    kept = CachedTokens(
        PageCodec("keys", states_of("uniform, minmax", "channels"), 8, 1, 8), 8, x[:, :, :0]
    )
    kept.append(x)
    kept.code((tokens - first - 5) // 8, first)
    return kept, x


def whole(kept: CachedTokens) -> torch.Tensor:
    return kept.append(kept.recent[:, :, :0])


def test_first_and_recent_tokens_are_kept_as_they_are():
    kept, x = cached()
    assert (kept.pages, kept.tokens) == (4, 40)
    found = whole(kept)
    assert torch.equal(found[:, :, :3], x[:, :, :3])
    assert torch.equal(found[:, :, 35:], x[:, :, 35:])
    middle = (found - x)[:, :, 3:35].abs()
    assert 0 < float(middle.max()) < 0.05


@pytest.mark.parametrize("count", [0, 2, 5, 6, 13, 21, 36, 37, 39, 40])
def test_the_last_tokens_can_be_taken_off(count):
    kept, x = cached()
    before = whole(kept)
    kept.crop(count)
    assert kept.tokens == 40 - count
    assert torch.equal(whole(kept), before[:, :, : 40 - count])
    kept.append(x[:, :, 40 - count :])
    kept.code(4, 3)
    assert float((whole(kept) - x).abs().max()) < 0.1


def test_sequences_are_chosen_without_decoding():
    kept, _ = cached()
    before = whole(kept)
    kept.select(lambda t, dim: t.index_select(dim, torch.tensor([1, 1, 0])))
    assert torch.equal(whole(kept), before[[1, 1, 0]])
