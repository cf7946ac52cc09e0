"""Layout, writer and reader: what goes in comes out, from any number of processes."""

import errno
import hashlib
import itertools
import math
import multiprocessing
import os
import pickle
import socket
import weakref

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from reallm_formats import (
    BITS,
    Archive,
    Block,
    FormatError,
    Manifest,
    MatrixEntry,
    ModelDocument,
    SectionEntry,
    Writer,
    encode_manifest,
    layout,
    parse_manifest,
    parse_model,
    section_bytes,
    v1,
    writer,
)
from reallm_formats.errors import ReallmError
from vectors import samples

EMPTY = {"recipe": {}, "methods": [], "matrices": [], "ties": {}, "provenance": {}}
ROWS = [
    ("tensor:a", "f32", (3, 5)),
    ("file:b.json", "u8", (11,)),
    ("tensor:none", "i64", (0,)),
    ("tensor:c", "bf16", ()),
]


def document(error=0.0):
    matrix = MatrixEntry(
        name="m", shape=(2, 3), dtype="f32", tensor="m.weight", method=0, relative_error=error
    )
    return ModelDocument(
        recipe={"seed": 0}, methods=({},), matrices=(matrix,), ties={}, provenance={"by": "test"}
    ).plain()


def contents(plan, seed=0):
    """Random bytes for every section, with unused bits zero."""
    import random

    draw = random.Random(seed)
    datas = {}
    for section in plan.sections.values():
        data = bytearray(draw.randbytes(section.nbytes))
        if section.spare_bits:
            data[-1] &= 0xFF >> section.spare_bits
        datas[section.name] = bytes(data)
    return datas


def write(path, plan, datas, final):
    with Writer.create(path, plan) as out:
        digests = {name: out.write(name, data) for name, data in datas.items()}
        out.finish(final, digests)


@pytest.fixture
def plan():
    return layout(kind="model", document=EMPTY, sections=ROWS)


@pytest.fixture
def complete(tmp_path, plan):
    """A finished archive and what was put in."""
    path, datas = tmp_path / "a.reallm", contents(plan)
    write(path, plan, datas, EMPTY)
    return path, datas


# ---- layout ----------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
SHAPES = st.lists(st.integers(0, 40), max_size=3)
TABLES = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(BITS)), SHAPES), max_size=30, unique_by=lambda r: r[0]
)


def named(table):
    """Sections of a model with one matrix `m`: codes are its parts, numbers are kept tensors."""
    return [
        (f"matrix:m/r{i}" if dtype.startswith("b") and dtype[1:].isdigit() else f"tensor:{name}",
         dtype, shape)
        for i, (name, dtype, shape) in enumerate(table)
    ]  # fmt: skip


@given(TABLES)
def test_the_terms_add_up_and_the_places_are_right(table):
    plan = layout(kind="model", document=document(), sections=named(table))
    terms = (plan.header_bytes, plan.manifest_bytes, plan.section_bytes, plan.padding_bytes)
    assert sum(terms) == plan.file_bytes
    assert plan.header_bytes == 128
    assert plan.section_bytes == sum(section_bytes(dtype, shape) for _, dtype, shape in table)
    assert len(encode_manifest(plan.manifest)) == plan.manifest_bytes
    assert parse_manifest(encode_manifest(plan.manifest)) == plan.manifest
    end = 128 + plan.manifest_bytes
    for section in plan.manifest.sections:
        assert section.offset % 64 == 0
        assert 0 <= section.offset - end < 64
        end = section.offset + section.nbytes
    assert end == plan.file_bytes


@given(TABLES, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory, table, seed):
    path = tmp_path_factory.mktemp("round") / "a"
    plan = layout(kind="model", document=document(), sections=named(table))
    datas = contents(plan, seed)
    write(path, plan, datas, document(0.25))
    assert path.stat().st_size == plan.file_bytes
    with Archive.open(path) as archive:
        assert archive.verify() == []
        assert archive.kind == "model"
        assert archive.file_bytes == plan.file_bytes
        assert archive.name == str(path)
        assert archive.model.matrices[0].relative_error == 0.25
        assert archive.document == document(0.25)
        assert {name: bytes(archive.read(name)) for name in archive.sections} == datas


def test_offsets_that_lengthen_the_manifest_settle():
    """A longer offset makes the manifest longer, which moves the offset."""
    for size in itertools.chain(range(400), range(65_000, 65_600)):
        rows = [("tensor:a", "u8", (size,)), ("tensor:b", "u8", (1,)), ("tensor:c", "u8", (1,))]
        plan = layout(kind="model", document=EMPTY, sections=rows)
        assert len(encode_manifest(plan.manifest)) == plan.manifest_bytes
    huge = layout(
        kind="model",
        document=EMPTY,
        sections=[("tensor:a", "u8", (2**32,)), ("tensor:b", "u8", (1,))],
    )
    assert huge.manifest.sections[1].offset > 2**32
    assert len(encode_manifest(huge.manifest)) == huge.manifest_bytes


def test_order_of_maps_does_not_matter(tmp_path):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    files = []
    for number, given_document in enumerate((document(), turned(document()))):
        plan = layout(kind="model", document=given_document, sections=[])
        write(tmp_path / str(number), plan, {}, given_document)
        files.append((tmp_path / str(number)).read_bytes())
    assert files[0] == files[1]


def test_the_layout_shares_nothing_with_its_document():
    given_document = document()
    plan = layout(kind="model", document=given_document, sections=[])
    given_document["matrices"][0]["name"] = "changed"
    assert plan.manifest.document == document()


def test_a_layout_travels_to_workers(plan):
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"kind": "poem"}, "M3"),
        ({"features": ["x"]}, "M5"),
        ({"document": {}}, "D1"),
        ({"document": {**EMPTY, "recipe": {"a": {1, 2}}}}, "C5"),
        ({"document": {**EMPTY, "recipe": {"a": math.nan}}}, "C6"),
        ({"sections": [("tensor:a", "f32", (1,))] * 2}, "S4"),
        ({"sections": [("a", "f32", (1,))]}, "S3"),
        ({"sections": [("tensor:a", "f4", (1,))]}, "S6"),
        ({"sections": [("tensor:a", "f32", (-1,))]}, "S7"),
        ({"sections": [(f"tensor:{i}", "u8", (2**48, 2**11)) for i in range(16)]}, "H5"),
    ],
)
def test_a_layout_that_no_reader_would_accept(changes, rule):
    facts = {"kind": "model", "document": EMPTY, "sections": []}
    with pytest.raises(FormatError) as caught:
        layout(**(facts | changes))
    assert caught.value.rule == rule


BLOCK_ROWS = (("codes", "b3", (5, 7)), ("scales", "f16", (5,)))


def in_blocks():
    """Two matrices and a group; all matrices have the same rows."""
    rows = [{**samples.MATRIX, "name": name, "tensor": f"{name}.weight"} for name in ("a", "é" * 9)]
    blocks = [
        Block("share:g", (("codebook", "f16", (4,)),)),
        *(Block(f"matrix:{row['name']}", BLOCK_ROWS) for row in rows),
        Block("matrix:a", ()),
    ]
    return {**document(), "matrices": rows}, blocks


def test_blocks_are_laid_out_as_their_sections():
    content, blocks = in_blocks()
    kept = [("tensor:norm", "f32", (70_000,)), ("file:config.json", "u8", (3,))]
    flat = kept + [row for block in blocks for row in block.sections()]
    for sections in ([], kept):
        grouped = layout(kind="model", document=content, sections=sections, blocks=blocks)
        plain = layout(kind="model", document=content, sections=flat[2 - len(sections) :])
        assert grouped == plain
        assert grouped.rows == plain.rows
        assert len(encode_manifest(grouped.manifest)) == grouped.manifest_bytes
        assert grouped.file_bytes == grouped.manifest.sections[-1].end
    assert grouped != layout(kind="model", document=content, sections=kept)
    assert grouped != "a layout"


def test_an_owner_in_two_blocks_has_each_section_once():
    content, blocks = in_blocks()
    apart = [*blocks, Block("matrix:a", (("order", "u8", (1,)),))]
    assert layout(kind="model", document=content, blocks=apart).rows[-1][0] == "matrix:a/order"


@pytest.mark.parametrize(
    ("sections", "extra", "rule"),
    [
        ([], Block("matrix:a", BLOCK_ROWS[1:]), "S4"),
        ([("matrix:a/scales", "f16", (5,))], None, "S4"),
        ([], Block("matrix:a", BLOCK_ROWS[:1] * 2), "S4"),
        ([], Block("tensor:a", BLOCK_ROWS), "S3"),
        ([], Block("matrix:b", (("x/codes", "u8", (1,)),)), "S3"),
        ([], Block("matrix:b", (("Codes", "u8", (1,)),)), "S3"),
        ([], Block("matrix:a\n", BLOCK_ROWS), "S2"),
        ([], Block("matrix:" + "a" * 499, BLOCK_ROWS), "S2"),
        ([], Block("matrix:b", BLOCK_ROWS), "D4"),
    ],
)
def test_a_block_that_no_reader_would_accept(sections, extra, rule):
    content, blocks = in_blocks()
    blocks = [*blocks, *([extra] if extra else [])]
    with pytest.raises(FormatError) as caught:
        layout(kind="model", document=content, sections=sections, blocks=blocks)
    assert caught.value.rule == rule


def test_limits_of_lengths(monkeypatch):
    monkeypatch.setattr(v1, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(FormatError) as caught:
        layout(kind="model", document=document(), sections=[])
    assert caught.value.rule == "H5"


def test_limit_of_sections(monkeypatch):
    monkeypatch.setattr(v1, "MAX_SECTIONS", 3)
    with pytest.raises(FormatError) as caught:
        layout(kind="model", document=EMPTY, sections=ROWS)
    assert caught.value.rule == "S1"


def test_a_known_feature_is_accepted(monkeypatch):
    monkeypatch.setattr(v1, "FEATURES", frozenset({"a", "b_2"}))
    plan = layout(kind="model", document=EMPTY, sections=[], features=["b_2", "a"])
    assert plan.manifest.features == ("a", "b_2")
    assert parse_manifest(encode_manifest(plan.manifest)) == plan.manifest


# ---- writer ----------------------------------------------------------------------------------


def test_exact_bytes(tmp_path):
    """The whole file of the smallest document, by hand."""
    plan = layout(kind="model", document=EMPTY, sections=[])
    write(tmp_path / "a", plan, {}, EMPTY)
    manifest = bytes.fromhex(
        "84 a8646f63756d656e74 85 a86d61747269636573 90 a76d6574686f6473 90"
        "aa70726f76656e616e6365 80 a6726563697065 80 a474696573 80"
        "a86665617475726573 90 a46b696e64 a56d6f64656c a873656374696f6e73 90"
    )
    front = b"\x89RLM\r\n\x1a\n" + bytes.fromhex("0100 0000 80000000 5700000000000000")
    front += (128 + len(manifest)).to_bytes(8, "little")
    digest = hashlib.sha256(front + bytes(96) + manifest).digest()
    assert (tmp_path / "a").read_bytes() == front + digest + bytes(64) + manifest


def test_nothing_is_an_archive_before_finish(tmp_path, plan):
    path, datas = tmp_path / "a", contents(plan)
    with Writer.create(path, plan) as out:
        assert path.stat().st_size == plan.file_bytes
        for name, data in datas.items():
            assert out.write(name, data) == hashlib.sha256(data).digest() == out.digest(name)
        out.flush()
    with pytest.raises(FormatError, match="never finished") as caught:
        Archive.open(path)
    assert caught.value.rule == "H1"
    assert "run the same compile again" in caught.value.hint


def test_the_space_is_really_reserved(tmp_path, plan):
    with Writer.create(tmp_path / "a", plan):
        assert (tmp_path / "a").stat().st_blocks * 512 >= plan.file_bytes


def test_order_of_writing_does_not_matter(tmp_path, plan, complete):
    path, datas = complete
    with Writer.create(tmp_path / "b", plan) as out:
        digests = {name: out.write(name, datas[name]) for name in reversed(datas)}
        out.finish(EMPTY, digests)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_resuming_ends_with_the_same_bytes(tmp_path, plan, complete):
    path, datas = complete
    digests = {}
    Writer.create(tmp_path / "b", plan).close()
    for name, data in datas.items():
        with Writer.open(tmp_path / "b", plan) as out:
            digests[name] = out.write(name, data)
    (tmp_path / "b").chmod(0o644)
    with open(tmp_path / "b", "r+b") as file:  # what a crash may leave in a gap
        file.seek(plan.manifest.sections[1].offset - 1)
        file.write(b"\xff")
    for _ in range(2):  # killed after the header was written: finishing again changes nothing
        with Writer.open(tmp_path / "b", plan) as out:
            out.finish(EMPTY, digests)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def fill(job):
    path, plan, name, data = job
    with Writer.open(path, plan) as out:
        return name, out.write(name, data)


def test_several_processes_fill_one_file(tmp_path, plan, complete):
    path, datas = complete
    Writer.create(tmp_path / "b", plan).close()
    jobs = [(tmp_path / "b", plan, name, data) for name, data in datas.items()]
    # importlib import mode gives this module no name that a fresh interpreter could import.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        digests = dict(pool.map(fill, jobs))
    with Writer.open(tmp_path / "b", plan) as out:
        out.finish(EMPTY, digests)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_large_sections_go_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK", 10)
    plan = layout(kind="model", document=EMPTY, sections=ROWS)
    datas = contents(plan)
    write(tmp_path / "a", plan, datas, EMPTY)
    with Writer.open(tmp_path / "a", plan) as out:
        assert out.digest("tensor:a") == hashlib.sha256(datas["tensor:a"]).digest()
    with Archive.open(tmp_path / "a") as archive:
        assert archive.verify() == []


@pytest.mark.parametrize("size", [1, 7, 60, 100])
def test_parts_give_the_bytes_of_the_whole(tmp_path, plan, monkeypatch, complete, size):
    path, datas = complete
    monkeypatch.setattr(writer, "CHUNK", 10)
    with Writer.create(tmp_path / "b", plan) as out:
        digests = {}
        for name, data in datas.items():
            parts = [data[first : first + size] for first in range(0, len(data), size)]
            digests[name] = out.write_parts(name, iter([b"", *parts, b""]))
            assert digests[name] == hashlib.sha256(data).digest() == out.digest(name)
        out.finish(EMPTY, digests)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_parts_beyond_their_section_touch_no_other(tmp_path, plan):
    with Writer.create(tmp_path / "a", plan) as out:
        after = (tmp_path / "a").read_bytes()[out._section("tensor:a").end :]
        for sizes, given in (((30, 31), 61), ((60, 1), 61), ((30, 29), 59), ((), 0)):
            with pytest.raises(FormatError, match=f"60 bytes and was given {given}") as caught:
                out.write_parts("tensor:a", (b"\xff" * size for size in sizes))
            assert caught.value.rule == "S7"
        assert (tmp_path / "a").read_bytes()[out._section("tensor:a").end :] == after


def test_one_part_is_held_at_a_time(tmp_path, plan):
    """A part is free before the next is made: what makes it may use its memory again."""

    class Part(bytearray):
        """A buffer that can be watched."""

    def parts():
        for _ in range(3):
            part = Part(20)
            seen.append(weakref.ref(part))
            assert [known() for known in seen[:-1]] == [None] * (len(seen) - 1)
            yield part
            del part

    seen = []
    with Writer.create(tmp_path / "a", plan) as out:
        out.write_parts("tensor:a", parts())
    assert len(seen) == 3


def test_short_writes_are_completed(tmp_path, plan, monkeypatch, complete):
    path, datas = complete
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    write(tmp_path / "b", plan, datas, EMPTY)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_what_was_written_can_be_read_again(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK", 10)
    datas = contents(plan)
    with Writer.create(tmp_path / "a", plan) as out:
        for name, data in datas.items():
            out.write(name, data)
            assert out.read(name) == data
        os.truncate(tmp_path / "a", plan.file_bytes - 1)
        for ask in (out.read, out.digest):
            with pytest.raises(OSError, match="ends before byte"):
                ask("tensor:c")


def test_any_contiguous_buffer_is_taken(tmp_path):
    import array

    rows = [("tensor:a", "f32", (2, 2)), ("tensor:none", "f32", (0,))]
    plan = layout(kind="model", document=EMPTY, sections=rows)
    numbers = array.array("f", [1, 2, 3, 4])
    with Writer.create(tmp_path / "a", plan) as out:
        for data in (numbers, memoryview(numbers), bytearray(numbers.tobytes())):
            assert out.write("tensor:a", data) == hashlib.sha256(numbers.tobytes()).digest()
        assert out.write("tensor:none", array.array("f")) == hashlib.sha256().digest()


def test_a_section_of_the_wrong_length_is_refused(tmp_path, plan):
    with Writer.create(tmp_path / "a", plan) as out:
        for size in (0, 59, 61):
            with pytest.raises(FormatError, match=f"60 bytes and was given {size}") as caught:
                out.write("tensor:a", bytes(size))
            assert caught.value.rule == "S7"
            assert caught.value.location.startswith("section tensor:a, byte ")


def test_codes_with_dirty_bits_are_refused(tmp_path):
    plan = layout(kind="model", document=document(), sections=[("matrix:m/codes", "b3", (2, 3))])
    with Writer.create(tmp_path / "a", plan) as out:
        with pytest.raises(FormatError, match="6 unused bits") as caught:
            out.write("matrix:m/codes", b"\x00\x00\x04")
        assert caught.value.rule == "S11"
        with pytest.raises(FormatError, match="6 unused bits"):
            out.write_parts("matrix:m/codes", (b"\x00\x00", b"\x04"))
        out.write("matrix:m/codes", b"\xff\xff\x03")


def test_an_unknown_section_is_a_mistake_of_the_caller(tmp_path, plan):
    with Writer.create(tmp_path / "a", plan) as out, pytest.raises(ValueError, match="tensor:z"):
        out.write("tensor:z", b"")


@pytest.mark.parametrize(
    ("final", "drop", "rule"),
    [
        (EMPTY | {"provenance": {"time": 1}}, None, "H5"),
        (EMPTY | {"provenance": {"time": 1.5}}, None, "D7"),
        (EMPTY | {"ties": []}, None, "D1"),
        (EMPTY, "tensor:a", "S10"),
    ],
)
def test_finish_refuses_what_no_reader_would_accept(tmp_path, plan, final, drop, rule):
    with Writer.create(tmp_path / "a", plan) as out:
        digests = {name: out.write(name, data) for name, data in contents(plan).items()}
        digests.pop(drop, None)
        with pytest.raises(FormatError) as caught:
            out.finish(final, digests)
        assert caught.value.rule == rule
        digests = dict.fromkeys(plan.sections, b"short")
        with pytest.raises(FormatError) as caught:
            out.finish(EMPTY, digests)
        assert caught.value.rule == "S10"
    with pytest.raises(FormatError, match="never finished"):
        Archive.open(tmp_path / "a")


def test_create_replaces_nothing(complete, plan):
    path, _ = complete
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        Writer.create(path, plan)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_nothing_behind(tmp_path, plan, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Writer.create(tmp_path / "a", plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_where_the_file_system_cannot_reserve(tmp_path, plan, monkeypatch, complete, code):
    def refuse(descriptor, start, size):
        raise OSError(code, "not here")

    path, datas = complete
    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    write(tmp_path / "b", plan, datas, EMPTY)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_open_wants_the_reserved_file(tmp_path, plan):
    with pytest.raises(FileNotFoundError):
        Writer.open(tmp_path / "none", plan)
    (tmp_path / "short").write_bytes(bytes(plan.file_bytes - 1))
    with pytest.raises(FormatError, match="the layout has") as caught:
        Writer.open(tmp_path / "short", plan)
    assert caught.value.rule == "H4"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a plain file") as caught:
        Writer.open(tmp_path / "pipe", plan)
    assert caught.value.rule == "F1"


def test_closing_twice_is_closing_once(tmp_path, plan):
    out = Writer.create(tmp_path / "a", plan)
    out.close()
    out.close()


# ---- reader ----------------------------------------------------------------------------------


def test_opening_touches_no_section(complete):
    """A damaged section is found when it is read, and not before; the others stay readable."""
    path, datas = complete
    data = bytearray(path.read_bytes())
    with Archive.open(path) as archive:
        offset = archive.sections["tensor:a"].offset
    data[offset + 7] ^= 0x10
    path.write_bytes(data)
    with Archive.open(path) as archive:
        assert bytes(archive.read("file:b.json")) == datas["file:b.json"]
        for _ in range(2):
            with pytest.raises(FormatError, match="digest differs") as caught:
                archive.read("tensor:a")
        assert caught.value.rule == "S9"
        assert caught.value.location == f"{path}: section tensor:a, byte {offset}"
        (damage,) = archive.verify()
        assert str(damage) == f"section tensor:a, byte {offset}: {damage.message}"


def test_views_are_read_only_and_outlive_the_archive(complete):
    path, datas = complete
    archive = Archive.open(path)
    view = archive.read("tensor:a")
    assert archive.read("tensor:a") == view
    assert view.readonly
    archive.close()
    archive.close()
    assert bytes(view) == datas["tensor:a"]
    with pytest.raises(ValueError, match="closed"):
        archive.read("file:b.json")


def test_an_archive_in_memory(complete):
    path, datas = complete
    archive = Archive(memoryview(bytearray(path.read_bytes())))
    assert archive.read("tensor:a").readonly
    assert bytes(archive.read("tensor:a")) == datas["tensor:a"]
    archive.close()


def test_an_unknown_section_is_a_key_error(complete):
    with Archive.open(complete[0]) as archive, pytest.raises(KeyError):
        archive.read("tensor:z")


def test_progress_counts_every_byte(complete, plan):
    seen = []
    with Archive.open(complete[0]) as archive:
        assert archive.verify(progress=seen.append) == []
    assert sum(seen) == plan.section_bytes


def test_the_layout_can_be_had_back(complete, plan):
    with Archive.open(complete[0]) as archive:
        found = archive.layout
    assert found.file_bytes == plan.file_bytes == complete[0].stat().st_size
    assert found.padding_bytes == plan.padding_bytes
    assert found.section_bytes == plan.section_bytes
    assert found.manifest_bytes == plan.manifest_bytes
    assert found.manifest.document == plan.manifest.document


def test_the_digest_names_the_archive(tmp_path, complete, plan):
    path, datas = complete
    other = dict(datas) | {"file:b.json": b"other bytes"}
    write(tmp_path / "b", plan, other, EMPTY)
    with Archive.open(path) as first, Archive.open(tmp_path / "b") as second:
        assert len(first.digest) == 32
        assert first.digest != second.digest


def test_the_document_of_another_kind(complete, monkeypatch):
    with Archive.open(complete[0]) as archive:
        with pytest.raises(FormatError, match="not an adapter") as caught:
            _ = archive.adapter
        assert caught.value.rule == "M3"
        with pytest.raises(FormatError, match="not a decoder") as caught:
            _ = archive.decoder
        assert caught.value.rule == "M3"
        with pytest.raises(FormatError, match="not statistics") as caught:
            _ = archive.statistics
        assert caught.value.rule == "M3"
        monkeypatch.setattr(archive, "manifest", Manifest(kind="adapter"))
        with pytest.raises(FormatError, match="not a model") as caught:
            _ = archive.model
        assert caught.value.rule == "M3"


def test_what_is_not_a_file(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket")
        cases = {
            "none": ("F1", "there is no such file"),
            "empty": ("F2", "the file is empty"),
            "pipe": ("F1", "this is not a plain file"),
            ".": ("F1", "this is a folder, not a file"),
            "socket": ("F1", "the file cannot be read: No such device or address"),
            "a\0b": ("F1", "the file cannot be read: embedded null byte"),
        }
        for name, (rule, message) in cases.items():
            with pytest.raises(FormatError) as caught:
                Archive.open(name)
            assert (caught.value.rule, caught.value.message) == (rule, message)
            assert caught.value.location == name.replace("\0", "\\x00")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "the file may not be read"),
        (OSError("odd"), "the file cannot be read: odd"),
    ],
)
def test_what_the_system_refuses(complete, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FormatError, match=message) as caught:
        Archive.open(complete[0])
    assert caught.value.rule == "F1"


def test_a_file_that_cannot_be_mapped(complete, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(FormatError, match="Cannot allocate memory") as caught:
        Archive.open(complete[0])
    assert caught.value.rule == "F1"


def test_many_refusals_leave_nothing_open(tmp_path, complete):
    (tmp_path / "bad").write_bytes(complete[0].read_bytes()[:-1])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(50):
        with pytest.raises(FormatError):
            Archive.open(tmp_path / "bad")
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_documents_and_entries_are_plain_data_again():
    assert parse_model(document()).plain() == document()
    entry = SectionEntry(name="tensor:a", dtype="f32", shape=(2,), offset=64, sha256=bytes(32))
    assert (entry.nbytes, entry.end, entry.spare_bits) == (8, 72, 0)
    assert entry.plain()["shape"] == [2]


def test_errors_travel_between_processes():
    error = FormatError("S9", "damaged", location="section a", note="n", hint="h")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is FormatError
    assert vars(again) == vars(error)
    assert str(again) == "section a: damaged"
    assert str(FormatError("S9", "damaged").inside("f")) == "f: damaged"


def test_note_and_hint_of_an_error_are_its_notes():
    error = ReallmError("wrong", location="file", note="why", hint="what to do")
    assert str(error) == "file: wrong"
    assert error.__notes__ == ["note: why", "hint: what to do"]
    assert ReallmError("wrong").__notes__ == []
