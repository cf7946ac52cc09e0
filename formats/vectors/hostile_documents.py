"""Manifests whose document, of any kind of archive, says something wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors import forge
from vectors.forge import archive
from vectors.samples import (
    DECODER,
    KEPT,
    MATRIX,
    MOMENTS,
    PARTS,
    ROW,
    SUMS,
    adapter,
    decoder,
    model,
    statistics,
)


def models() -> Iterator[tuple[str, str, bytes]]:
    """Documents of models."""

    def file(*sections: forge.Section, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, model(**changes))

    def matrix(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**MATRIX, **changes}])

    bare = {key: value for key, value in forge.MODEL.items() if key != "ties"}
    yield "D1", "no-ties", archive(edit=lambda manifest: manifest.update(document=bare))
    yield "D1", "recipe-list", file(recipe=[])
    yield "D1", "method-text", file(methods=["nf4"])
    yield "D2", "row-text", file(matrices=["up"])
    yield "D2", "no-tensor", file(matrices=[{k: v for k, v in MATRIX.items() if k != "tensor"}])
    yield "D2", "name-number", matrix(name=1)
    yield "D2", "three-extents", matrix(shape=[1, 2, 3])
    yield "D2", "no-rows", matrix(shape=[0, 3])
    yield "D2", "codes-as-dtype", matrix(dtype="b3")
    yield "D2", "integers-as-dtype", matrix(dtype="i64")
    yield "D2", "negative-index", matrix(index=-1)
    yield "D2", "transposed-number", matrix(transposed=0)
    yield "D2", "no-such-method", matrix(method=1)
    yield "D2", "negative-error", matrix(relative_error=-0.5)
    yield "D2", "integer-error", matrix(relative_error=0)
    yield "D3", "name-twice", file(matrices=[MATRIX, {**MATRIX, "tensor": "x"}])
    yield "D3", "tensor-twice", file(matrices=[MATRIX, {**MATRIX, "name": "x"}])
    parts = [{**MATRIX, "index": 0}, {**MATRIX, "name": "x"}]
    yield "D3", "whole-and-part", file(matrices=parts)
    yield "D3", "kept-and-coded", file(("tensor:up.weight", "u8", [0], b""))
    yield "D4", "no-such-matrix", file(("matrix:down/codes", "b3", [0], b""))
    yield "D5", "codes-as-tensor", file(("tensor:x", "b3", [0], b""))
    yield "D5", "numbers-as-file", file(("file:x", "f32", [0], b""))
    yield "D5", "file-of-rank-2", file(("file:x", "u8", [0, 1], b""))
    yield "D6", "to-nothing", file(ties={"head.weight": "x"})
    yield "D6", "from-stored", file(KEPT, ties={"norm.weight": "up.weight"})
    yield "D6", "number", file(ties={"head.weight": 1})
    yield "D7", "float", file(provenance={"time": 1.5})
    yield "D7", "map", file(provenance={"host": {}})
    part, next_part = ({**MATRIX, "name": f"e.{i}", "tensor": "e", "index": i} for i in (0, 1))
    yield "D8", "unlike-shapes", file(matrices=[part, {**next_part, "shape": [3, 2]}])
    yield "D8", "unlike-types", file(matrices=[part, {**next_part, "dtype": "f32"}])
    yield "D8", "one-transposed", file(matrices=[part, {**next_part, "transposed": True}])
    yield "D8", "one-missing", file(matrices=[next_part])


def decoders() -> Iterator[tuple[str, str, bytes]]:
    """Documents of decoders."""

    def file(sections: list[forge.Section] = DECODER, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, decoder(**changes), kind="decoder")

    codes, scales, values = DECODER
    bare: forge.Plain = {"structure": {}}
    yield "E1", "no-provenance", archive(DECODER, bare, kind="decoder")
    yield "E1", "structure-list", file(structure=[])
    yield "D7", "decoder-float", file(provenance={"time": 1.5})
    yield "M2", "decoder-one-key-more", file(later=1)
    yield "E1", "structure-text", file(structure="8x8")
    yield "E2", "no-sections", file([])
    yield "E2", "one-missing", file([codes, scales])
    yield "E2", "one-more", file([*DECODER, KEPT])
    yield "E2", "order", file([scales, codes, values])
    yield "E2", "numbers-as-codes", file([(codes[0], "u8", [3], bytes(3)), scales, values])
    yield "E2", "wide-codes", file([(codes[0], "b9", [2], b"\x01\x00\x00"), scales, values])
    yield "E2", "wide-scales", file([codes, (scales[0], "f32", [1], bytes(4)), values])
    yield "E2", "two-extents", file([codes, scales, (values[0], "f16", [1, 2], bytes(4))])
    yield "E2", "of-a-matrix", file([("matrix:up/decoder_codes", *codes[1:]), scales, values])


def adapters() -> Iterator[tuple[str, str, bytes]]:
    """Documents of adapters."""

    def file(sections: list[forge.Section] = PARTS, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, adapter(**changes), kind="adapter")

    def row(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**ROW, **changes}])

    bare = {key: value for key, value in adapter().items() if key != "settings"}
    yield "A1", "no-settings", archive(PARTS, bare, kind="adapter")
    yield "A1", "settings-list", file(settings=[])
    yield "A1", "matrices-map", file(matrices={})
    yield "A1", "model-document", archive([], forge.MODEL, kind="adapter")
    yield "A2", "short", file(base=bytes(31))
    yield "A2", "text", file(base="0" * 32)
    yield "A3", "row-text", file(matrices=["up"])
    yield "A3", "no-rank", file(matrices=[{k: v for k, v in ROW.items() if k != "rank"}])
    yield "A3", "rank-above", row(rank=3)
    yield "A3", "rank-negative", row(rank=-1)
    yield "A3", "rank-true", row(rank=True)
    yield "A3", "name-number", row(name=1)
    yield "A3", "one-extent", row(shape=[2])
    yield "A3", "no-columns", row(shape=[2, 0])
    yield "A3", "codes-as-dtype", row(dtype="b4")
    yield "A3", "gain-number", row(gain=1)
    yield "A3", "column-gain-number", row(column_gain=0)
    yield "A3", "integer-error", row(rounding_error=0)
    yield "A3", "negative-error", row(rounding_error=-0.5)
    yield "A4", "twice", file(matrices=[ROW, ROW])
    yield "A5", "no-sections", file([])
    yield "A5", "one-missing", file(PARTS[:2])
    yield "A5", "order", file([PARTS[1], PARTS[0], PARTS[2]])
    yield "A5", "other-type", row(dtype="bf16")
    yield "A5", "other-rank", row(rank=2)
    yield "A5", "one-more", file([*PARTS, KEPT])
    yield "A5", "no-scales", row(dtype="i8")
    one = {"name": "tensor:norm.weight", "dtype": "f16", "shape": [3]}

    def other(**changes: Any) -> bytes:  # noqa: ANN401
        return file(replaced=[{**one, **changes}])

    yield "A1", "replaced-map", file(replaced={})
    yield "A5", "replaced-missing", other()
    yield "A6", "replaced-text", file(replaced=["up"])
    yield "A6", "replaced-no-shape", file(replaced=[{"name": "tensor:x", "dtype": "f16"}])
    yield "A6", "replaced-name-number", other(name=1)
    yield "A6", "replaced-codes", other(name="matrix:up/codes", dtype="b3")
    yield "A6", "replaced-type-number", other(dtype=16)
    yield "A6", "replaced-file", other(name="file:config.json", dtype="u8")
    yield "A6", "replaced-shape-text", other(shape="3")
    yield "A6", "replaced-extent-float", other(shape=[3.0])
    yield "S3", "replaced-no-form", other(name="norm.weight")
    yield "M2", "replaced-key", other(later=1)
    yield "D7", "adapter-float", file(provenance={"time": 1.5})
    yield "M2", "adapter-key", file(later=1)
    yield "M2", "adapter-row-key", row(later=1)


def statistics_files() -> Iterator[tuple[str, str, bytes]]:
    """Documents of statistics."""

    def file(sections: list[forge.Section] = SUMS, **changes: Any) -> bytes:  # noqa: ANN401
        return archive(sections, statistics(**changes), kind="statistics")

    def row(**changes: Any) -> bytes:  # noqa: ANN401
        return file(matrices=[{**MOMENTS, **changes}])

    def second(**changes: Any) -> bytes:  # noqa: ANN401
        other = {**MOMENTS, "name": "gate", **changes}
        return file([*SUMS, *_renamed("gate")], matrices=[MOMENTS, other])

    bare = {key: value for key, value in statistics().items() if key != "tokens"}
    yield "T1", "no-tokens", archive(SUMS, bare, kind="statistics")
    yield "T1", "settings-list", file(settings=[])
    yield "T1", "matrices-map", file(matrices={})
    yield "T1", "provenance-list", file(provenance=[])
    yield "T1", "tokens-zero", file(tokens=0)
    yield "T1", "tokens-float", file(tokens=7.0)
    yield "T1", "tokens-above", file(tokens=(1 << 48) + 1)
    yield "T2", "row-text", file(matrices=["up"])
    yield "T2", "no-form", file(matrices=[{k: v for k, v in MOMENTS.items() if k != "input_form"}])
    yield "T2", "name-number", row(name=1)
    yield "S2", "statistics-inputs-escape", row(inputs="\x1b[2J")
    yield "T2", "one-extent", row(shape=[2])
    yield "T2", "no-columns", row(shape=[2, 0])
    yield "T2", "extent-true", row(shape=[2, True])
    yield "T2", "short-digest", row(sha256=bytes(31))
    yield "T2", "digest-text", row(sha256="0" * 32)
    yield "T2", "no-inputs-form", row(input_form="none")
    yield "T2", "output-form-number", row(output_form=1)
    yield "T3", "twice", file(matrices=[MOMENTS, MOMENTS])
    yield "T4", "of-nothing", row(inputs="down")
    yield "T4", "of-a-later-one", file(matrices=[{**MOMENTS, "name": "a"}, MOMENTS])
    yield (
        "T4",
        "of-one-that-shares",
        file(matrices=[MOMENTS, {**MOMENTS, "name": "b"}, {**MOMENTS, "name": "c", "inputs": "b"}]),
    )
    yield "T4", "other-width", second(inputs="up", shape=[2, 4])
    yield "T4", "other-form", second(inputs="up", input_form="diagonal")
    yield "T5", "no-sections", file([])
    yield "T5", "one-missing", file(SUMS[:-1])
    yield "T5", "order", file([SUMS[1], SUMS[0], *SUMS[2:]])
    yield "T5", "square", file([(SUMS[0][0], "f32", [9], bytes(36)), *SUMS[1:]])
    yield "T5", "other-type", file([(SUMS[0][0], "f64", [6], bytes(48)), *SUMS[1:]])
    yield "T5", "one-more", file([*SUMS, KEPT])
    yield "T5", "gradients-of-none", row(output_form="none")
    yield "T5", "inputs-of-one-that-shares", second(inputs="up")
    yield "D7", "statistics-float", file(provenance={"time": 1.5})
    yield "M2", "statistics-key", file(later=1)
    yield "M2", "statistics-row-key", row(later=1)


def _renamed(name: str) -> list[forge.Section]:
    """The sections of another matrix that stores its own inputs."""
    return [(section.replace(":up/", f":{name}/"), *rest) for section, *rest in SUMS]  # type: ignore[misc]
