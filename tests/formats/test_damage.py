"""Every changed bit, every cut and every extension of an archive is found and its place named."""

import hashlib
import random
import re
import struct

import pytest

from reallm_formats import Archive, FormatError, MatrixEntry, ModelDocument, Writer, layout

ROWS = [
    ("matrix:model.up/codes", "b3", (16, 20)),
    ("matrix:model.up/codebook", "f16", (8, 2)),
    ("share:all/decoder", "f32", (5,)),
    ("tensor:model.norm.weight", "bf16", (33,)),
    ("file:config.json", "u8", (61,)),
]


def build(path):
    """A complete archive of between 1 and 4 KiB, with padding, shared parts and spare bits."""
    document = ModelDocument(
        recipe={"reallm": 1, "seed": 0, "defaults": {"quantizer": {"kind": "vq", "bits": "3/2"}}},
        methods=({"quantizer": {"kind": "vq"}, "dora": False},),
        matrices=(
            MatrixEntry(
                name="model.up",
                shape=(16, 40),
                dtype="bf16",
                tensor="model.up.weight",
                method=0,
                relative_error=0.25,
            ),
        ),
        ties={"head.weight": "model.norm.weight"},
        provenance={"reallm": "0.1.0", "source": bytes(range(32))},
    ).plain()
    plan = layout(kind="model", document=document, sections=ROWS)
    draw = random.Random(5)
    with Writer.create(path, plan) as out:
        digests = {name: out.write(name, draw.randbytes(s.nbytes)) for name, s in
                   plan.sections.items()}  # fmt: skip
        out.finish(document, digests)
    return plan


@pytest.fixture
def complete(tmp_path):
    plan = build(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    assert 1024 <= len(data) <= 4096
    assert plan.padding_bytes > 100
    return plan, data


def part_at(plan, at):
    """What lies at a byte of the file."""
    if at < 128:
        return "header"
    start = 128 + plan.manifest_bytes
    if at < start:
        return "manifest"
    for section in plan.manifest.sections:
        if at < section.offset:
            return f"padding before section {section.name}, byte {at}"
        if at < section.end:
            return f"section {section.name}, byte {section.offset}"
    raise AssertionError(at)


def found(data):
    """Location of the damage of a file, or None."""
    try:
        archive = Archive(memoryview(data))
    except FormatError as error:
        return error.location.removeprefix("archive: ")
    damages = archive.verify()
    assert len(damages) <= 1
    return damages[0].location if damages else None


def test_the_archive_is_whole(complete):
    plan, data = complete
    assert found(data) is None
    covered = 128 + plan.manifest_bytes + plan.section_bytes + plan.padding_bytes
    assert covered == len(data)


def test_every_single_bit(complete):
    plan, data = complete
    damaged = bytearray(data)
    for at in range(len(data)):
        expected = part_at(plan, at)
        for bit in range(8):
            damaged[at] ^= 1 << bit
            location = found(damaged)
            assert location is not None, f"bit {bit} of byte {at} ({expected})"
            if expected in ("header", "manifest"):
                assert expected in location, f"bit {bit} of byte {at}: {location}"
            else:
                assert location == expected
            damaged[at] ^= 1 << bit


def test_every_truncation(complete):
    _, data = complete
    for size in range(len(data)):
        location = found(data[:size])
        assert location is not None, size
        assert f"byte {size}" in location


@pytest.mark.parametrize("tail", [b"\0", b"\xff", bytes(64), bytes(4096), b"PK\x03\x04"])
def test_every_extension(complete, tail):
    _, data = complete
    assert f"byte {len(data) + len(tail)}" in found(data + tail)
    assert found(data + data) is not None
    assert found(tail + data) is not None


def test_every_swap_of_sections_of_one_size(tmp_path):
    """Sections are bound to their names: exchanging the bytes of two is found at both."""
    document = ModelDocument(
        recipe={}, methods=(), matrices=(), ties={}, provenance={}
    ).plain()  # fmt: skip
    rows = [(f"tensor:{name}", "u8", (64,)) for name in "abc"]
    plan = layout(kind="model", document=document, sections=rows)
    with Writer.create(tmp_path / "a", plan) as out:
        digests = {name: out.write(name, name.encode() * 8) for name in plan.sections}
        out.finish(document, digests)
    data = bytearray((tmp_path / "a").read_bytes())
    a, b, _ = plan.manifest.sections
    first, second = data[a.offset : a.end], data[b.offset : b.end]
    data[a.offset : a.end], data[b.offset : b.end] = second, first
    damages = Archive(memoryview(data)).verify()
    assert [damage.location for damage in damages] == [a.location, b.location]


def test_a_consistent_forgery_is_another_archive(complete):
    """Somebody who repairs every digest has made a valid archive, under another name."""
    plan, data = complete
    last = plan.manifest.sections[-1]
    forged = bytearray(data)
    forged[-1] ^= 1
    old = hashlib.sha256(data[last.offset :]).digest()
    new = hashlib.sha256(forged[last.offset :]).digest()
    forged = forged.replace(old, new)
    struct.pack_into("32s", forged, 32, bytes(32))
    blank = bytes(forged[: 128 + plan.manifest_bytes])
    struct.pack_into("32s", forged, 32, hashlib.sha256(blank).digest())
    assert found(forged) is None
    assert Archive(memoryview(forged)).digest != Archive(memoryview(data)).digest


def test_locations_can_be_found_again(complete):
    """A location holds a byte of the file, in words that a script can cut."""
    _, data = complete
    damaged = bytearray(data)
    for at in range(0, len(data), 7):
        damaged[at] ^= 0x40
        match = re.search(r"bytes? (\d+)", found(damaged))
        assert match
        assert int(match[1]) <= len(data)
        damaged[at] ^= 0x40
