"""Safetensors headers: what a sound one says, and one hostile file for each rule."""

from __future__ import annotations

import contextlib
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.checkpoint.headers import DTYPES, EXTENT_LIMIT, HEADER_LIMIT, read_header
from reallm_compiler.errors import SourceError
from reallm_formats.dtypes import BITS


def pack(header, data=b""):
    """A file of a header (text, bytes or plain data) and its data."""
    text = header if isinstance(header, bytes | str) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_sound_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        pack(
            {
                "__metadata__": {"format": "pt"},
                "late": entry("BF16", (3, 2), 8, 20),
                "early": entry("F32", (2,), 0, 8),
                "empty": entry("F16", (0, 5), 20, 20),
                "scalar": entry("I64", (), 20, 28),
            },
            bytes(28),
        )
    )
    specs = read_header(path, "a.safetensors")
    start = path.stat().st_size - 28
    assert [(s.name, s.dtype, s.shape, s.begin - start) for s in specs] == [
        ("early", "f32", (2,), 0),
        ("late", "bf16", (3, 2), 8),
        ("empty", "f16", (0, 5), 20),
        ("scalar", "i64", (), 20),
    ]
    assert all(s.shard == "a.safetensors" for s in specs)


def test_byte_ranges_are_the_numbers(tmp_path):
    from safetensors.numpy import save_file

    stack = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / "a.safetensors"
    save_file({"x": np.ones(5, np.int64), "stack": stack}, path)
    spec = {s.name: s for s in read_header(path, "a")}["stack"]
    data = path.read_bytes()

    def numbers(**part):
        begin, end = spec.byte_range(**part)
        return np.frombuffer(data[begin:end], "<f4").tolist()

    assert numbers() == stack.ravel().tolist()
    assert numbers(index=1) == stack[1].ravel().tolist()
    assert numbers(index=1, rows=(1, 3)) == stack[1, 1:3].ravel().tolist()
    assert numbers(rows=(1, 2)) == stack[1].ravel().tolist()
    assert numbers(index=0, rows=(2, 2)) == []


@pytest.mark.parametrize("word", DTYPES)
def test_every_type_has_a_size(tmp_path, word):
    size = BITS[DTYPES[word]] // 8
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack({"x": entry(word, (3,), 0, 3 * size)}, bytes(3 * size)))
    (spec,) = read_header(path, "a")
    assert spec.stored_bytes == 3 * size


HOSTILE = {
    "empty file": (b"", "holds 0 bytes, too few"),
    "short length": (b"\x01\x00\x00", "holds 3 bytes, too few"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "header above the limit": (
        struct.pack("<Q", HEADER_LIMIT + 1) + b"{}",
        "claims 100,000,001 bytes",
    ),
    "header longer than the file": (struct.pack("<Q", 50) + b"{}", "ends 48 bytes early"),
    "length of all ones": (b"\xff" * 16, "claims 18,446,744,073,709,551,615 bytes"),
    "empty header": (pack(b""), "does not start with a brace"),
    "a list": (pack(b"[]"), "does not start with a brace"),
    "a space first": (pack(b" {}"), "does not start with a brace"),
    "cut JSON": (pack(b'{"a": '), "not valid JSON"),
    "two documents": (pack(b"{}{}"), "not valid JSON"),
    "bytes that are no text": (pack(b'{"\xff": 1}'), "not valid JSON"),
    "not a number": (pack(b'{"a": NaN}'), "NaN is not a number"),
    "deep nesting": (pack(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "an endless number": (pack(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "a name twice": (
        pack(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', bytes(8)),
        "'a' stands twice",
    ),
    "a field twice": (
        pack('{"a": {"dtype": "F32", "dtype": "F32"}}'),
        "'dtype' stands twice",
    ),
    "no mapping": (pack({"a": 3}), "not described by"),
    "a field missing": (pack({"a": {"dtype": "F32", "shape": [2]}}), "not described by"),
    "a field too many": (pack({"a": {**entry(), "x": 1}}, bytes(8)), "not described by"),
    "empty name": (pack({"": entry()}, bytes(8)), "not a valid tensor name"),
    "name with a line break": (pack({"a\nb": entry()}, bytes(8)), "not a valid tensor name"),
    "name with half a pair": (
        pack(b'{"\\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "not a valid tensor name",
    ),
    "name of nothing": (pack({".weight": entry()}, bytes(8)), "it is empty"),
    "endless name": (pack({"a" * 449: entry()}, bytes(8)), "it has 449 bytes, above 448"),
    "name of long letters": (pack({"\u00e4" * 225: entry()}, bytes(8)), "it has 450 bytes"),
    "4-bit type": (pack({"a": entry("F4", (2,), 0, 1)}, bytes(1)), "element type 'F4'"),
    "type that is a list": (pack({"a": entry([], (2,))}, bytes(8)), r"element type \[\]"),
    "negative extent": (pack({"a": entry(shape=(-2,))}, bytes(8)), "invalid shape"),
    "fractional extent": (pack({"a": entry(shape=(2.0,))}, bytes(8)), "invalid shape"),
    "extent true": (pack({"a": entry(shape=(True, 2))}, bytes(8)), "invalid shape"),
    "shape that is a word": (
        pack({"a": {"dtype": "F32", "shape": "22", "data_offsets": [0, 8]}}, bytes(8)),
        "invalid shape",
    ),
    "too many axes": (pack({"a": entry(shape=(1,) * 9, end=4)}, bytes(4)), "has 9 axes, above 8"),
    "absurd extent": (
        pack({"a": entry(shape=(0, EXTENT_LIMIT + 1), end=0)}),
        "invalid shape",
    ),
    "absurd product": (
        pack({"a": entry(shape=(2**40, 2**40), end=8)}, bytes(8)),
        "invalid shape",
    ),
    "absurd product of nothing": (
        pack({"a": entry(shape=(2**40, 2**40, 0), end=0)}),
        "invalid shape",
    ),
    "more than its range": (
        pack({"a": entry(shape=(2**20, 2**20), end=8)}, bytes(8)),
        "but its range 0..8 has 8",
    ),
    "offsets of one number": (
        pack({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, bytes(8)),
        "no usable data_offsets",
    ),
    "negative offset": (pack({"a": entry(begin=-8, end=0)}), "no usable data_offsets"),
    "offsets backwards": (pack({"a": entry(begin=8, end=0)}, bytes(8)), "has -8"),
    "range too long": (pack({"a": entry(end=12)}, bytes(12)), "needs 8 bytes"),
    "a hole at the start": (
        pack({"a": entry(begin=8, end=16)}, bytes(16)),
        "'a' leaves a hole after the header",
    ),
    "a hole": (
        pack({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20)),
        "'b' leaves a hole after tensor 'a'",
    ),
    "an overlap": (
        pack({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)),
        "'b' overlaps tensor 'a'",
    ),
    "data cut short": (pack({"a": entry()}, bytes(5)), "shard bad ends 3 bytes early"),
    "a tail": (pack({"a": entry()}, bytes(9)), "1 bytes follow the last tensor"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file(tmp_path, data, message):
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        read_header(path, "bad")
    assert caught.value.location.startswith("bad")


def test_truncation_says_what_to_do(tmp_path):
    path = tmp_path / "bad"
    path.write_bytes(pack({"a": entry()}, bytes(5)))
    with pytest.raises(SourceError) as caught:
        read_header(path, "model-00001-of-00002.safetensors")
    assert str(caught.value) == (
        "model-00001-of-00002.safetensors: "
        "shard model-00001-of-00002.safetensors ends 3 bytes early"
    )
    assert caught.value.hint == "download it again"


def test_missing_unreadable_and_special_files(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_header(tmp_path / "none", "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a plain file"):
        read_header(tmp_path / "pipe", "pipe")
    with pytest.raises(SourceError, match=r"not a plain file|cannot be read"):
        read_header(tmp_path, "folder")
    secret = tmp_path / "secret"
    secret.write_bytes(pack({}))
    secret.chmod(0)
    if os.geteuid():
        with pytest.raises(SourceError, match="may not be read"):
            read_header(secret, "secret")


@given(st.binary(max_size=200))
def test_random_bytes_end_in_one_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(SourceError):
        read_header(path, "random")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.sampled_from(["F32", "BF16", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), JSON, max_size=3))
def test_random_headers_end_in_one_error(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(pack(header, bytes(16)))
    try:
        specs = read_header(path, "header")
    except SourceError:
        return
    assert sum(spec.stored_bytes for spec in specs) == 16
