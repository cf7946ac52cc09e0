"""Archives whose digests are right and whose content means nothing: each is refused by its rule."""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.errors import FormatError
from reallm_compiler.reader.decoder import extract_decoder
from reallm_compiler.reader.verify import verify
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of
from reallm_formats import section_bytes
from vectors import forge

Plain = dict[str, Any]
Change = Callable[[Plain, list[forge.Section]], object]

SHAPE = (8, 6)
METHOD: Plain = {
    "residual": {"kind": "low_rank", "rank": 1, "dtype": "int8"},
    "permutation": {"kind": "nearest", "rows": 4},
    "scales": {"kind": "minmax", "per": "row"},
    "quantizer": {"kind": "trellis", "bits": "3/2", "state_bits": 3, "dtype": "float32"},
    "dora": True,
}
SORTED: Plain = {
    "transform": [{"kind": "channel_scale"}],
    "permutation": {"kind": "norm_sorted", "sides": "both", "rows": 4},
    "scales": {"kind": "affine", "per": "row", "dtype": "float16", "code_bits": 2},
    "quantizer": {"kind": "uniform", "bits": 2},
}
LEVELS: Plain = {
    "scales": {"kind": "minmax", "block": 8, "dtype": "float16", "bits": 3, "superblock": 2}
    | {"zero_bits": 4, "zero_superblock": 3, "offset": "superblock"},
    "quantizer": {"kind": "uniform", "bits": 2},
}
VECTORS: Plain = {"quantizer": {"kind": "vq", "bits": 1, "dim": 2}}
SPARSE: Plain = {
    "residual": [{"kind": "sparse", "fraction": "1/3", "rows": 2}],
    "quantizer": {"kind": "none", "dtype": "float16"},
}
SUMS: Plain = {
    "residual": {"kind": "monarch", "blocks": 2, "dtype": "int8"},
    "scales": {"kind": "rms", "per": "row"},
    "quantizer": {"kind": "additive", "code_bits": 3, "dim": 2, "dtype": "float16"},
}
HNERV: Plain = {
    "autoencoder": {"kind": "hnerv", "patch": 4, "latent": [1, 2, 2], "width": 1},
    "quantizer": {"kind": "none", "dtype": "float16"},
}


KEPT = [*[1, 3] * 4, *[5, 0, 2, 4] * 4]
"""Counts of eight rows, and the columns of their kept weights."""


def ordered(columns: int, rows: int, bits: int) -> bytes:
    """Codes of `rows` orders that change nothing."""
    return packed([index for _ in range(rows) for index in range(columns)], bits)


def packed(codes: list[int], bits: int) -> bytes:
    """Codes as a stream, least significant bit first."""
    word = sum(code << (bits * index) for index, code in enumerate(codes))
    return word.to_bytes(math.ceil(bits * len(codes) / 8), "little")


def parts(name: str, method: Plain, shape: tuple[int, int] = SHAPE) -> list[forge.Section]:
    """Sections of one matrix with values that have a meaning: zeros, orders and full masks."""
    made: list[forge.Section] = []
    for spec in layout_of(MatrixPlan.model_validate(method), shape, "bf16").sections:
        data = bytes(section_bytes(spec.dtype, spec.shape))
        if spec.role in ("order", "row_order"):
            data = ordered(spec.shape[1], spec.shape[0], int(spec.dtype[1:]))
        elif spec.role == "sparse_index":
            data = packed(KEPT, 3)
        elif spec.role == "high_rate":
            data = b"\x07"
        elif spec.role in ("codebook_scale", "high_rate_scale"):
            data = struct.pack("<f", 1)
        elif spec.role == "channel_scale":
            data = struct.pack("<e", 1) * spec.shape[0]
        made.append((f"matrix:{name}/{spec.role}", spec.dtype, list(spec.shape), data))
    return made


def row(name: str, **changes: Any) -> Plain:
    return {
        "name": name,
        "shape": list(SHAPE),
        "dtype": "bf16",
        "tensor": f"{name}.weight",
        "index": None,
        "transposed": False,
        "method": 0,
        "relative_error": 0.0,
        **changes,
    }


def forged(
    path: Path,
    change: Change | None = None,
    method: Plain = METHOD,
    shape: tuple[int, int] = SHAPE,
) -> Path:
    """An archive of one matrix `m`, changed before its digests are made."""
    document = {**forge.MODEL, "methods": [copy.deepcopy(method)]}
    document["matrices"] = [row("m", shape=list(shape))]
    sections = parts("m", method, shape)
    if change is not None:
        change(document, sections)
    path.write_bytes(forge.archive(sections, document))
    return path


def section(role: str, at: int, value: bytes) -> Change:
    """A change of the bytes of one section."""

    def edit(_: Plain, sections: list[forge.Section]) -> None:
        index = next(i for i, one in enumerate(sections) if one[0].endswith(f"/{role}"))
        name, dtype, shape, data = sections[index]
        assert at + len(value) <= len(data)
        sections[index] = (name, dtype, shape, data[:at] + value + data[at + len(value) :])

    return edit


def rows(*given: Plain) -> Change:
    """Other matrices, their sections with them."""

    def edit(document: Plain, sections: list[forge.Section]) -> None:
        document["matrices"] = list(given)
        sections[:] = [part for one in given for part in parts(one["name"], METHOD)]

    return edit


NAN, INFINITE = struct.pack("<e", math.nan), struct.pack("<e", math.inf)
BELOW = struct.pack("<e", -1)
VALUES = {
    "order-twice": section("order", 0, b"\x00"),
    "order-outside": section("order", 2, b"\xff"),
    "order-of-the-last-rows": section("order", 4, b"\x00"),
    "nan-in-a-table": section("codebook", 8, struct.pack("<f", math.nan)),
    "infinite-table": section("codebook", 0, struct.pack("<f", math.inf)),
    "infinite-scale": section("scales", 4, struct.pack("<f", math.inf)),
    "scale-below-zero": section("scales", 0, struct.pack("<f", -0.5)),
    "nan-as-zero-point": section("zeros", 0, struct.pack("<f", math.nan)),
    "factor-scale-below-zero": section("l1_scales", 0, BELOW),
    "nan-in-a-factor-scale": section("l2_scales", 0, NAN),
    "infinite-gain": section("gain", 2, INFINITE),
    "mask-of-two": section("high_rate", 0, b"\x03"),
    "mask-of-four": section("high_rate", 0, b"\x0f"),
}
DOCUMENTS: dict[str, tuple[str, Change]] = {
    "unknown-plan": ("P1", lambda d, s: d["methods"][0].update(dora="yes")),
    "unused-plan": ("P1", lambda d, s: d["methods"].append(dict(METHOD, dora=False))),
    "other-name": ("P2", rows(row("m", tensor="n.weight"))),
    "name-with-its-suffix": ("P2", rows(row("m.weight", tensor="m"))),
    "name-without-its-part": (
        "P2",
        rows(row("e", tensor="e", index=0), row("e.1", tensor="e", index=1)),
    ),
    "reserved-name": ("P2", lambda d, s: s.insert(0, ("tensor:__metadata__", "f32", [0], b""))),
    "section-too-many": ("P4", lambda d, s: s.append(("matrix:m/more", "b1", [8], b"\0"))),
    "section-too-few": ("P4", lambda d, s: s.pop()),
    "other-order": ("P4", lambda d, s: s.reverse()),
    "another-rank": ("P4", lambda d, s: d["methods"][0]["residual"].update(rank=2)),
}


def test_the_forger_makes_archives_that_mean_something(tmp_path: Path) -> None:
    for method in (METHOD, SORTED, LEVELS, VECTORS, SPARSE, SUMS, HNERV):
        path = forged(tmp_path / "good.reallm", method=method)
        assert verify(path) == []
        with reallm.open(path) as archive:
            assert archive.matrix("m").shape == SHAPE


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0.0, "element 0 is zero"),
        (-0.0, "element 0 is zero"),
        (-1.0, "element 0 is negative"),
        (math.nan, "element 0 is not a finite number"),
    ],
)
def test_a_codebook_of_integers_has_a_scale_above_zero(
    value: float, problem: str, tmp_path: Path
) -> None:
    change = section("codebook_scale", 0, struct.pack("<f", value))
    (damage,) = verify(forged(tmp_path / "bad.reallm", change, VECTORS))
    assert (damage.rule, damage.message) == ("P5", problem)
    assert "codebook_scale" in damage.location


OTHERS: dict[str, tuple[Plain, Change, str]] = {
    "row-twice": (
        SORTED,
        section("row_order", 0, b"\x00"),
        "row 0 is not a permutation of 8 numbers: 1 is missing",
    ),
    "column-outside": (
        SORTED,
        section("order", 1, b"\xff"),
        "row 0 is not a permutation of 6 numbers: 2 is missing",
    ),
    "channel-of-zero": (
        SORTED,
        section("channel_scale", 4, struct.pack("<e", 0)),
        "element 2 is zero",
    ),
    "channel-below-zero": (SORTED, section("channel_scale", 2, BELOW), "element 1 is negative"),
    "nan-as-channel": (
        SORTED,
        section("channel_scale", 0, NAN),
        "element 0 is not a finite number",
    ),
    "nan-as-step": (SORTED, section("scales", 2, NAN), "element 1 is not a finite number"),
    "step-below-zero": (SORTED, section("scales", 0, BELOW), "element 0 is negative"),
    "infinite-offset": (
        LEVELS,
        section("zeros_offset", 2, INFINITE),
        "element 1 is not a finite number",
    ),
    "offset-below-zero": (LEVELS, section("scales_offset", 4, BELOW), "element 2 is negative"),
    "nan-as-super-scale": (
        LEVELS,
        section("zeros_super", 0, NAN),
        "element 0 is not a finite number",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_numbers_and_orders_without_a_meaning(name: str, tmp_path: Path) -> None:
    method, change, problem = OTHERS[name]
    path = forged(tmp_path / "bad.reallm", change, method)
    (damage,) = verify(path)
    assert (damage.rule, damage.message) == ("P5", problem)
    with pytest.raises(FormatError) as caught:
        reallm.reconstruct(path, tmp_path / "out")
    assert (caught.value.rule, caught.value.message) == ("P5", damage.message)


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES.keys())
def test_values_without_a_meaning(tmp_path: Path, change: Change) -> None:
    """The section is named, by `verify` and by whoever reads it; `--quick` does not look."""
    path = forged(tmp_path / "bad.reallm", change)
    (damage,) = verify(path)
    assert damage.rule == "P5"
    assert damage.location.startswith("section matrix:m/")
    assert verify(path, quick=True) == []
    with pytest.raises(FormatError) as caught:
        reallm.reconstruct(path, tmp_path / "out")
    assert (caught.value.rule, caught.value.message) == ("P5", damage.message)
    assert caught.value.location == f"{path}: {damage.location}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("at", "code", "problem"),
    [
        (0, 2, "the rows of block 0 keep 5 weights where 4 must be"),
        (7, 2, "the rows of block 3 keep 3 weights where 4 must be"),
        (8, 6, "column 6 of kept weight 0 is outside of the matrix"),
        (23, 7, "column 7 of kept weight 15 is outside of the matrix"),
        (10, 0, "the columns of a row do not ascend at kept weight 2"),
        (11, 1, "the columns of a row do not ascend at kept weight 3"),
    ],
)
def test_kept_weights_without_a_meaning(at: int, code: int, problem: str, tmp_path: Path) -> None:
    codes = [code if index == at else one for index, one in enumerate(KEPT)]
    change = section("sparse_index", 0, packed(codes, 3))
    (damage,) = verify(forged(tmp_path / "bad.reallm", change, SPARSE))
    assert (damage.rule, damage.message) == ("P5", problem)
    change = section("sparse_values", 2, INFINITE)
    (damage,) = verify(forged(tmp_path / "bad.reallm", change, SPARSE))
    assert (damage.rule, damage.message) == ("P5", "element 1 is not a finite number")


@pytest.mark.parametrize(
    ("role", "value", "problem"),
    [
        ("monarch_left_scales", BELOW, "element 0 is negative"),
        ("monarch_right_scales", NAN, "element 0 is not a finite number"),
        ("codebook", INFINITE, "element 0 is not a finite number"),
    ],
)
def test_factors_and_words_without_a_meaning(
    role: str, value: bytes, problem: str, tmp_path: Path
) -> None:
    path = forged(tmp_path / "bad.reallm", section(role, 0, value), SUMS)
    (damage,) = verify(path)
    assert (damage.rule, damage.message) == ("P5", problem)
    assert f"/{role}," in damage.location


@pytest.mark.parametrize(("rule", "change"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents_without_a_meaning(tmp_path: Path, rule: str, change: Change) -> None:
    path = forged(tmp_path / "bad.reallm", change)
    (damage,) = verify(path)
    assert (damage.rule, damage.location[:9]) == (rule, "manifest:")
    assert verify(path, quick=True) == []
    with pytest.raises(FormatError) as caught:
        reallm.open(path)
    assert caught.value.rule == rule
    assert caught.value.location == f"{path}: {damage.location}"


def test_finite_parts_of_an_infinite_matrix(tmp_path: Path) -> None:
    """What no section shows is found when it is decoded."""

    def change(_: Plain, sections: list[forge.Section]) -> None:
        section("scales", 0, struct.pack("<f", 3e38))(_, sections)
        section("codebook", 0, struct.pack("<8f", *[3e38] * 8))(_, sections)

    path = forged(tmp_path / "bad.reallm", change)
    assert verify(path) == []
    with reallm.open(path) as archive, pytest.raises(FormatError, match="not finite") as caught:
        archive.matrix("m")
    assert caught.value.rule == "P5"


COSTLY = {
    "memory of a large patch": ((1, 1), {"patch": 16384, "width": 1, "kernel_max": 1}),
    "memory of wide stages": ((1, 1), {"patch": 4096, "width": 8, "kernel_max": 1}),
    "hours": ((16384, 16384), {"patch": 512, "width": 96, "decoder_bits": 2}),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_decoder_that_costs_too_much(tmp_path: Path, name: str) -> None:
    shape, params = COSTLY[name]
    decoder = {"kind": "hnerv", "latent": [1, 1, 1], "min_width": params["width"], **params}
    method = {"autoencoder": decoder, "quantizer": {"kind": "uniform", "bits": 1}}
    method["scales"] = {"kind": "absmax", "per": "tensor"}
    path = forged(tmp_path / "slow.reallm", method=method, shape=shape)
    (damage,) = verify(path)
    assert damage.rule == "P6"
    assert ("multiply-accumulates" if name == "hours" else "bytes of memory") in damage.message
    assert verify(path, allow_cost=True) == []
    for function in (reallm.open, reallm.load, lambda where: reallm.reconstruct(where, "out")):
        with pytest.raises(FormatError) as caught:
            function(path)
        assert (caught.value.rule, caught.value.message) == ("P6", damage.message)
    with reallm.open(path, allow_cost=True) as archive:
        assert archive.names == ("m",)


def test_a_matrix_of_gigabytes_in_a_file_of_kilobytes(tmp_path: Path) -> None:
    method = {**HNERV, "autoencoder": {**HNERV["autoencoder"], "patch": 2048, "latent": [1, 1, 1]}}
    path = forged(tmp_path / "large.reallm", method=method, shape=(65536, 65536))
    (damage,) = verify(path)
    assert damage.message.startswith("decoding takes 8,589,934,592 bytes of weights; ")


def test_a_decoder_from_an_archive_of_other_provenance(tmp_path: Path) -> None:
    def bare(document: Plain, _: list[forge.Section]) -> None:
        document["provenance"] = {"who": "a stranger", "compute": 3}

    path = forged(tmp_path / "good.reallm", bare, method=HNERV)
    assert verify(path) == []
    made = extract_decoder(path, "m", tmp_path / "out.decoder")
    assert verify(made) == []


def test_a_matrix_is_found_by_its_whole_name(tmp_path: Path) -> None:
    """A tensor may be called `m.weight.weight`; what is left is `m.weight`."""
    change = rows(row("m.weight", tensor="m.weight.weight"))
    with reallm.open(forged(tmp_path / "good.reallm", change)) as archive:
        for name in ("m.weight", "m.weight.weight"):
            assert archive.matrix(name).shape == SHAPE
        assert archive.tensor("m.weight.weight").shape == SHAPE
