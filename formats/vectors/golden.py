"""Archives that every reader of version 1.0 opens."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vectors import forge
from vectors.forge import Plain, archive
from vectors.samples import (
    CODES,
    DECODER,
    KEPT,
    MATRIX,
    MOMENTS,
    PARTS,
    ROW,
    SUMS,
    TEXT,
    adapter,
    decoder,
    model,
    statistics,
)


def accepted() -> Iterator[tuple[str, bytes]]:
    """Archives that every reader of version 1.0 opens."""
    yield "empty", archive()
    yield "tiny", archive([TEXT])
    yield (
        "zero-sized",
        archive(
            [
                ("tensor:none", "f32", [0, 281474976710656], b""),
                ("tensor:scalar", "i16", [], b"\x01\x80"),
                ("tensor:last", "u8", [0], b""),
            ]
        ),
    )
    yield "dtypes", archive(list(_one_of_each()), model())
    stack = [{**MATRIX, "name": f"e/{i}", "tensor": "e", "index": i} for i in range(2)]
    sections: list[forge.Section] = [
        CODES,
        ("matrix:up/l1", "f16", [2, 1], struct.pack("<2e", 0.5, -1)),
        ("share:group one/codebook", "bf16", [2, 2], bytes.fromhex("803f00c000000041")),
        ("matrix:e/0/codes", "b16", [1], b"\xff\xff"),
        ("matrix:e/1/codes", "b1", [9], b"\xff\x01"),
        KEPT,
        TEXT,
        ("file:tokenizer/vocab.txt", "u8", [3], "é\n".encode()),
    ]
    document = model(
        recipe={"reallm": 1, "defaults": {"rank": "1/64", "list": [1, -1, 1.5, None, True]}},
        methods=[{"quantizer": {"kind": "uniform", "bits": 3}}],
        matrices=[MATRIX, *stack],
        ties={"head.weight": "norm.weight"},
        provenance={"reallm": "0.1.0", "source": bytes(range(32)), "seed": -1},
    )
    yield "model", archive(sections, document)

    rows = [
        ROW,
        {**ROW, "name": "e/0", "dtype": "i8", "gain": False, "rounding_error": 0.0},
        {**ROW, "name": "bare", "rank": 0, "column_gain": True},
        {**ROW, "name": "none", "rank": 0, "gain": False},
    ]
    coded: list[forge.Section] = [
        ("matrix:e/0/l1", "i8", [2, 1], b"\x7f\x81"),
        ("matrix:e/0/l2", "i8", [1, 3], b"\x01\x00\xff"),
        ("matrix:e/0/l1_scales", "f16", [1], struct.pack("<e", 0.25)),
        ("matrix:e/0/l2_scales", "f16", [1], struct.pack("<e", 2)),
        ("matrix:bare/gain", "f16", [2], struct.pack("<2e", 1, 2)),
        ("matrix:bare/column_gain", "f16", [3], struct.pack("<3e", 1, -1, 0.5)),
    ]
    settings = {"stages": ["block", "e2e"], "lr": 1e-05}
    replaced: list[forge.Section] = [
        ("share:model/codebook", "i8", [2, 1], b"\x7f\x80"),
        ("matrix:up/scales", "f32", [2], struct.pack("<2f", 0.5, 2)),
        KEPT,
    ]
    tuned = adapter(
        matrices=rows,
        replaced=[dict(zip(("name", "dtype", "shape"), one[:3], strict=True)) for one in replaced],
        settings=settings,
        provenance={"reallm": "0.1.0"},
    )
    yield "adapter", archive([*PARTS, *coded, *replaced], tuned, kind="adapter")

    yield "decoder", archive(DECODER, decoder(), kind="decoder")

    others: list[Plain] = [
        {**MOMENTS, "name": "gate", "shape": [1, 3], "output_form": "none"},
        {**MOMENTS, "name": "e/0", "shape": [1, 2], "inputs": "e/0", "input_form": "diagonal"},
    ]
    more: list[forge.Section] = [
        ("matrix:gate/counts", "u64", [2], struct.pack("<2Q", 7, 0)),
        ("matrix:e/0/inputs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/mean_abs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/counts", "u64", [2], struct.pack("<2Q", 3, 1)),
        ("matrix:e/0/weighted_inputs", "f32", [2], struct.pack("<2f", 1, 0)),
        ("matrix:e/0/outputs", "f32", [1], struct.pack("<f", 1)),
        ("matrix:e/0/weighted_outputs", "f32", [1], struct.pack("<f", 1)),
        ("matrix:e/0/energy", "f64", [], struct.pack("<d", 1)),
    ]
    measured = statistics(
        matrices=[MOMENTS, *others], settings={"window": 8}, provenance={"text": bytes(32)}
    )
    yield "statistics", archive([*SUMS, *more], measured, kind="statistics")

    def newer(manifest: Plain) -> None:
        manifest["later"] = 1
        manifest["document"]["later"] = 1

    yield "newer-minor", archive(edit=newer, header={"minor": 7, "reserved": b"\x01" * 64})


def _one_of_each() -> Iterator[forge.Section]:
    """A section of each element type; a type of codes has three elements, 1, 2 and 3."""
    for bits in range(1, 17):
        word = sum(((i + 1) & ((1 << bits) - 1)) << (bits * i) for i in range(3))
        data = word.to_bytes((3 * bits + 7) // 8, "little")
        yield f"matrix:up/codes{bits}", f"b{bits}", [3], data
    widths = {1: "bool u8 i8 f8_e4m3 f8_e5m2", 2: "u16 i16 f16 bf16", 4: "u32 i32 f32"}
    widths[8] = "u64 i64 f64"
    for width, words in widths.items():
        for dtype in words.split():
            yield f"tensor:{dtype}", dtype, [2], bytes([0, 1] * width)
