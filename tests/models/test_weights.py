"""Kept tensors: copied by pieces, scales multiplied in, and refused where a cast would lose one."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.checkpoint.inventory import Inventory
from reallm_compiler.codecs.sections import DTYPE_NAMES, TORCH_DTYPES
from reallm_compiler.errors import CodecError
from reallm_compiler.models import weights as weights_module
from reallm_compiler.models.weights import Weights
from reallm_compiler.tensors import ScaleSpec, TensorSpec
from reallm_formats import Writer

EMBEDDING = "model.embed_tokens.weight"


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Inventory:
    save_file(tensors, folder / "model.safetensors")
    return open_source(folder)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("f32", "f32"), ("f32", "bf16"), ("bf16", "f16"), ("f64", "f32"), ("i64", "i64")],
)
def test_pieces_are_the_tensor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    size: int,
    stored: str,
    wanted: str,
) -> None:
    monkeypatch.setattr(weights_module, "PIECE", size)
    values = (torch.randn(shape, dtype=torch.float64) * 9).to(TORCH_DTYPES[stored])
    weights = Weights(checkpoint(tmp_path, {"t": values}))
    pieces = list(weights.pieces("t", wanted))
    assert all(1 <= len(piece) <= size for piece in pieces)
    joined = torch.cat([torch.empty(0, dtype=TORCH_DTYPES[wanted]), *pieces])
    assert torch.equal(joined.view(shape), values.to(TORCH_DTYPES[wanted]))
    content = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    assert weights.take_digests() == {"t": hashlib.sha256(content).hexdigest()}
    assert torch.equal(weights.tensor("t", wanted), values.to(TORCH_DTYPES[wanted]))


SCALED = {
    "tensor": ((6, 10), (1, 1), (6, 10)),
    "blocks": ((6, 10), (2, 3), (4, 4)),
    "rows": ((6, 10), (6, 1), (1, 10)),
    "parts with scales of their own": ((3, 6, 10), (3, 2, 3), (4, 4)),
    "parts with common scales": ((3, 6, 10), (2, 3), (4, 4)),
}


@pytest.mark.parametrize("size", [1, 25, 1 << 20])
@pytest.mark.parametrize(("shape", "grid", "block"), SCALED.values(), ids=SCALED.keys())
def test_scales_are_multiplied_in_piece_by_piece(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    block: tuple[int, int],
    size: int,
) -> None:
    monkeypatch.setattr(weights_module, "PIECE", size)
    stored = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(grid) + 0.5
    found = checkpoint(tmp_path, {"w": stored, "s": scales})
    by_name = {spec.name: spec for spec in found.tensors}
    scaled = TensorSpec(
        name="w",
        dtype="bf16",
        shape=shape,
        shard=by_name["w"].shard,
        begin=by_name["w"].begin,
        stored="f8_e4m3",
        scale=ScaleSpec(tensor=by_name["s"], block=block),
    )
    weights = Weights(found)
    weights.by_name["w"] = scaled
    expected = torch.empty(shape, dtype=torch.bfloat16)
    for number in range(math.prod(shape)):
        *part, row, column = (int(at) for at in torch.unravel_index(torch.tensor(number), shape))
        at = (*part[: len(grid) - 2], row // block[0], column // block[1])
        value = stored[(*part, row, column)].float() * scales[at]
        expected[(*part, row, column)] = value
    assert torch.equal(weights.tensor("w", "bf16"), expected)
    assert all(len(piece) <= max(size, 10) for piece in weights.pieces("w", "f32"))
    if len(shape) == 3:
        assert torch.equal(weights.matrix("w", 2, transposed=False), expected[2])
    else:
        assert torch.equal(weights.matrix("w", None, transposed=True), expected.t())


def test_a_kept_tensor_is_never_held_whole(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: dict[str, int] = {}
    write_parts = Writer.write_parts

    def recorded(self: Writer, name: str, parts: Any) -> bytes:
        def seen() -> Any:
            for part in parts:
                longest[name] = max(longest.get(name, 0), memoryview(part).nbytes)
                yield part

        return write_parts(self, name, seen())

    monkeypatch.setattr(Writer, "write_parts", recorded)
    kept = {"role": "embedding", "keep": "source"}
    recipe = {"reallm": 1, "extends": "rtn-4bit", "rules": [kept]}
    outputs = []
    for size in (1 << 20, 100):
        monkeypatch.setattr(weights_module, "PIECE", size)
        output = tmp_path / f"{size}.reallm"
        reallm.compile(recipe, model=tiny_llama, output=output, device="cpu", workers=1)
        outputs.append(output.read_bytes())
        if size == 1 << 20:
            assert longest[f"tensor:{EMBEDDING}"] > 10_000
            longest.clear()
    assert longest[f"tensor:{EMBEDDING}"] == 200  # 100 numbers of bf16
    assert outputs[0] == outputs[1]


def bits(number: int) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.int16).view(torch.bfloat16)


def test_what_is_no_number_is_copied_bit_for_bit(tmp_path: Path) -> None:
    """Two NaN with other bits, both infinities."""
    values = torch.cat([bits(0x7FC1), bits(-1), bits(0x7F80), bits(-0x80)])
    weights = Weights(checkpoint(tmp_path, {"t": values}))
    copied = weights.tensor("t", "bf16")
    assert torch.equal(copied.view(torch.int16), values.view(torch.int16))
    cast = weights.tensor("t", "f16")
    assert cast.isnan().tolist() == [True, True, False, False]
    assert cast[2:].tolist() == [math.inf, -math.inf]


POSITIONS = {
    "scalar": ((), 0, "index []"),
    "vector": ((40,), 33, "index [33]"),
    "matrix": ((6, 10), 35, "row 3, column 5"),
    "parts": ((2, 3, 10), 47, "index [1, 1, 7]"),
}


@pytest.mark.parametrize(("shape", "at", "position"), POSITIONS.values(), ids=POSITIONS.keys())
@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [("bf16", "f16", 1e20), ("f32", "bf16", -3.4e38), ("f64", "f32", 1e300)],
)
def test_a_cast_that_overflows_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    at: int,
    position: str,
    stored: str,
    wanted: str,
    value: float,
) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 4)
    values = torch.zeros(shape, dtype=TORCH_DTYPES[stored])
    values.view(-1)[0] = math.inf  # an infinity that was there already is no overflow
    values.view(-1)[at] = value
    weights = Weights(checkpoint(tmp_path, {"big": values}))
    with pytest.raises(CodecError) as caught:
        weights.tensor("big", wanted)
    shown = f"{float(values.view(-1)[at]):.6g}"
    assert caught.value.message == f"the value at {position} is {shown}, which overflows {wanted}"
    assert caught.value.location == "big"
    assert "`source`" in str(caught.value.hint)
    name = DTYPE_NAMES[values.dtype]
    assert torch.equal(weights.tensor("big", name), values)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1e-9, False)])
def test_a_cast_that_loses_small_numbers_is_refused_if_they_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, passes: bool
) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 4)
    values = torch.tensor([0.0, 1e-9, -1e-9, 2e-9, 1.0, 2.0]).repeat(3)  # piece by piece
    values = torch.where(values.abs() < 1e-6, values, values * factor)
    values[0] = math.inf
    weights = Weights(checkpoint(tmp_path, {"small": values}))
    if passes:
        assert weights.tensor("small", "f16")[2] == 0
        return
    with pytest.raises(CodecError, match="values from 1e-09 to 2e-09 are too small") as caught:
        weights.tensor("small", "f16")
    assert caught.value.location == "small"
    assert "`source`" in str(caught.value.hint)
    weights.tensor("small", "bf16")


def test_a_kept_tensor_that_overflows_ends_the_compile(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_llama.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    tensors[EMBEDDING][3, 5] = 1e20
    save_file(tensors, model / "model.safetensors")
    recipe = {"reallm": 1, "rules": [{"match": "*embed_tokens", "keep": "fp16"}]}
    with pytest.raises(CodecError, match=r"row 3, column 5 is 9.97277e\+19") as caught:
        reallm.compile(recipe, model=model, output=tmp_path / "o.reallm", device="cpu", workers=1)
    assert caught.value.location == EMBEDDING
