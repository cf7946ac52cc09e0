"""Thousands of mutants, bombs of memory, names and first bytes that mean harm."""

import copy
import struct
import tracemalloc

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from reallm_formats import Archive, FormatError, names, parse_name
from tests.faults import fuzz_container as fuzzer
from tests.faults import fuzzing
from vectors import forge, make, samples


def test_mutants(tmp_path):
    """A small draw of tests/faults/fuzz_container.py; that script runs 100,000."""
    outcome = fuzzer.fuzz(2000, 1, tmp_path)
    assert outcome.findings == []
    assert outcome.intact + outcome.counts.total() == 2000
    assert len(outcome.counts) >= 25, "the mutants stop at the first rules"
    assert outcome.intact >= 5, "no mutant is valid: changes without effect are not tried"


def test_the_hostile_values_stay_what_they_are():
    """They go into mutants as copies: a map that was put into itself had no end."""
    before = repr(fuzzing.HOSTILE)
    for _ in fuzzer.mutants(3000, 770001):
        assert repr(fuzzing.HOSTILE) == before


def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch):
    """A reader that fails, and one that takes too much memory or time, are reported."""

    def broken(data, file=None):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(fuzzer, "attempt", broken)
    assert "ZeroDivisionError: oops" in fuzzer.fuzz(1, 0, tmp_path).findings[0]
    monkeypatch.setattr(fuzzer, "attempt", lambda data, file=None: bytes(fuzzer.MEMORY * 2)[:0])
    assert "bytes for a file of" in fuzzer.fuzz(1, 0, tmp_path).findings[0]
    monkeypatch.setattr(fuzzer, "SECONDS", 0.0)
    monkeypatch.setattr(fuzzer, "attempt", lambda data, file=None: None)
    assert "a file took" in fuzzer.fuzz(1, 0, tmp_path).findings[0]


def test_the_fuzzer_prints_and_succeeds(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "60", "--seed", "3"])
    assert fuzzer.main() == 0
    assert "60 files, seed 3" in capsys.readouterr().out


def test_the_fuzzer_fails_loudly(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "1"])
    monkeypatch.setattr(fuzzer, "SECONDS", 0.0)
    assert fuzzer.main() == 1
    assert "FOUND" in capsys.readouterr().out


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "shape", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ROW = {"name": samples.CODES[0], "dtype": "b3", "shape": [2, 3], "offset": 0, "sha256": b""}
GOOD = {
    "kind": "model",
    "features": [],
    "sections": [ROW],
    "document": samples.model(ties={"x": "up.weight"}, provenance={"a": "b"}),
}
PLACES = [(), *((key,) for key in GOOD), ("sections", 0)]
PLACES += [("sections", 0, key) for key in ROW]
PLACES += [("document", key) for key in GOOD["document"]]
PLACES += [("document", "methods", 0), ("document", "matrices", 0), ("document", "ties", "x")]
PLACES += [("document", "provenance", "a"), ("document", "recipe", "new"), ("document", "new")]
PLACES += [("document", "matrices", 0, key) for key in samples.MATRIX]


@given(st.sampled_from(PLACES), VALUES, st.booleans())
@settings(max_examples=400)
def test_any_value_at_any_position_of_a_manifest(path_to, value, newer):
    """Whatever stands somewhere is refused by a rule, or the archive opens and is sound."""
    manifest = copy.deepcopy(GOOD)
    data = samples.CODES[3]
    forge.set_offsets(manifest, [data])
    *path, last = path_to or (None,)
    holder = manifest
    for key in path:
        holder = holder[key]
    if path_to:
        holder[last] = value
    else:
        manifest = value
    encoded = forge.pack(manifest)
    body = bytes(-len(encoded) % 64) + data
    refused = None
    try:
        archive = Archive(memoryview(forge.join(encoded, body, header={"minor": int(newer)})))
    except FormatError as error:
        refused = error
    if refused is None:
        assert archive.verify() == [] or path_to == ("sections", 0, "sha256")
        assert archive.model.plain()["methods"] is not None
    else:
        assert refused.rule[0] in "MSD"
        assert refused.location


BOMBS = {
    "empty-maps": b"\x80",
    "empty-lists": b"\x90",
    "nils": b"\xc0",
    "lists-of-one": b"\x91\x90",
    "maps-of-one": b"\x81\xa0\xc0",
    "texts": b"\xa0",
    "new-keys": None,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_manifest_does_not_unfold_into_much_more_memory(name):
    """Rule C9: memory stays below a few MB and a small multiple of the file, whatever is in it."""
    size = 1 << 18
    unit = BOMBS[name]
    if unit is None:
        body = b"".join(b"\xa4" + struct.pack(">I", n) + b"\xc0" for n in range(0x10000, 0x1A000))
        encoded = b"\xdf" + struct.pack(">I", 0xA000) + body
    else:
        encoded = b"\xdd" + struct.pack(">I", size // len(unit)) + unit * (size // len(unit))
    data = forge.join(encoded, b"")
    tracemalloc.start()
    with pytest.raises(FormatError):
        Archive(memoryview(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8 << 20) + 20 * len(data)


@pytest.mark.parametrize("promise", [b"\xdd", b"\xdf", b"\xdb", b"\xc6"])
def test_a_promise_of_4_billion_allocates_nothing(promise):
    data = forge.join(promise + b"\xff\xff\xff\xff" + bytes(100), b"")
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        Archive(memoryview(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.rule == "C1"
    assert peak < 100_000


def test_a_long_chain_of_promises_allocates_nothing():
    """Lists inside lists, each of which promises all bytes that are left."""
    data = forge.join(b"\xdd\x00\x03\x00\x00" * 30 + bytes(1 << 18), b"")
    tracemalloc.start()
    with pytest.raises(FormatError):
        Archive(memoryview(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8 << 20) + 20 * len(data)


# ---- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (names.matrix_section("layers.0.up", "codes"), (names.MATRIX, "layers.0.up", "codes")),
        (names.matrix_section("a/../b/c", "l1"), (names.MATRIX, "a/../b/c", "l1")),
        (names.share_section("group one", "codebook"), (names.SHARE, "group one", "codebook")),
        (names.tensor_section("/etc/passwd"), (names.TENSOR, "/etc/passwd", "")),
        (names.tensor_section("café.weight"), (names.TENSOR, "café.weight", "")),
        (names.file_section("config.json"), (names.FILE, "config.json", "")),
        (names.file_section("sub/.hidden/a b.txt"), (names.FILE, "sub/.hidden/a b.txt", "")),
        (names.file_section("...a/..b"), (names.FILE, "...a/..b", "")),
        (names.file_section("x" * 255), (names.FILE, "x" * 255, "")),
    ],
    ids=range(9),
)  # fmt: skip
def test_good_names(name, parts):
    found = parse_name(name)
    assert (found.space, found.owner, found.role) == parts


@pytest.mark.parametrize("code", [0, 10, 0x1B, 0x7F, 0x85, 0x9F, 0x2028, 0x202E, 0x2066, 0xFEFF])
def test_names_that_would_move_a_cursor(code):
    with pytest.raises(FormatError, match=f"U\\+{code:04X}") as caught:
        parse_name(f"tensor:a{chr(code)}b", "here")
    assert (caught.value.rule, caught.value.location) == ("S2", "here")


def test_errors_about_names_are_safe_to_show():
    """The text of an error never holds the control characters that it is about."""
    for rule, _, data, _ in make.rejected():
        if rule in ("S2", "S3", "M2", "M3", "M4", "C4"):
            with pytest.raises(FormatError) as caught:
                Archive(memoryview(data))
            assert str(caught.value).isprintable()


# ---- first bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "message", "hint"),
    [
        (b"\x89RLM\n\x1a\n", "as text: CR LF became LF", "binary mode"),
        (b"\x89RLM\r\r\n\x1a\r\n", "as text: LF became CR LF", "binary mode"),
        (b"\tRLM\r\n\x1a\n", "as text: the eighth bit", "binary mode"),
        (b"\xef\xbf\xbdRLM\r\n", "as text: bytes were decoded", "binary mode"),
        (b"\x88RLM\r\n\x1a\n", "first bytes are damaged", "transfer it again"),
        (b"GGUF\x03", "looks like a GGUF file", None),
        (b"PK\x03\x04", "looks like a zip file", None),
        (b"\x80\x02}q", "looks like a Python pickle", None),
        (b"\x1f\x8b\x08", "looks like a gzip file", "unpack"),
        (b"\x80\0\0\0\0\0\0\0{\"a\"", "looks like a safetensors file", "reallm compile"),
        (b"<!DOCTYPE html>", "looks like a web page", "fetch it again"),
        (b"\xef\xbb\xbf <HTML>", "looks like a web page", "fetch it again"),
        (b"version https://git-lfs.github.com", "Git LFS pointer", "git lfs pull"),
        (b'{"model_type": "llama"}', "looks like JSON text", None),
        (b"reallm: 1\nmodel: x\n", "looks like text", None),
        ("é".encode() * 9 + b"\xc3", "looks like text", None),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "this is not a .reallm archive", None),
        (b"sixbytes{\x01", "this is not a .reallm archive", None),
        (b"text\0and a zero", "this is not a .reallm archive", None),
        (b"\x88\x53\x4d", "this is not a .reallm archive", None),
        (b"\x88SMM\r\n\x1a\n", "this is not a .reallm archive", None),
        (b"\x89RLN\r\n\x1a\x0b", "first bytes are damaged", "transfer it again"),
    ],
    ids=range(22),
)  # fmt: skip
def test_other_files_are_named(tmp_path, head, message, hint):
    (tmp_path / "a").write_bytes(head)
    with pytest.raises(FormatError) as caught:
        Archive.open(tmp_path / "a")
    assert caught.value.rule == "H1"
    assert message in caught.value.message
    guessed = "looks like" in caught.value.message
    assert guessed == ("not a .reallm" not in message and "as text" not in message)
    assert (hint or "") in (caught.value.hint or "")
    assert (caught.value.hint is None) == (hint is None)
