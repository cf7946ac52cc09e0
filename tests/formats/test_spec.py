"""SPEC.md says what the code does: rules, table of types, table of the header, hex dump."""

import re
from pathlib import Path

import pytest

from reallm_formats import BITS, v1
from vectors import make

ROOT = Path(make.HERE).parent
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")
RULES = re.findall(r"^- \*\*([A-Z]\d+)\*\*", SPEC, re.MULTILINE)
SOURCE = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "reallm_formats").rglob("*.py")
)


def test_rules_are_numbered_without_gaps():
    assert len(RULES) >= 40
    for letter in "FHCMSDAET":
        numbers = [int(rule[1:]) for rule in RULES if rule[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


def test_the_code_knows_the_same_rules():
    # Every rule stands in the code as a quoted word, and no other does.
    assert set(re.findall(r'"([FHCMSDAET]\d+)"', SOURCE)) == set(RULES)


def test_every_rule_has_a_hostile_file_or_a_reason():
    tried = {rule for rule, *_ in make.rejected()}
    assert tried | set(make.UNTESTABLE) == set(RULES)
    assert not tried & set(make.UNTESTABLE)


def test_the_table_of_types():
    table = re.findall(r"^\| `([a-z0-9_]+)` \| (\d+) \|", SPEC, re.MULTILINE)
    assert {name: int(bits) for name, bits in table} == dict(BITS)
    assert len(table) == len(BITS)


def test_the_table_of_the_header():
    table = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z ]+)", SPEC, re.MULTILINE)
    offset = 0
    for start, size, _ in table:
        assert int(start) == offset
        offset += int(size)
    assert offset == v1.HEADER_BYTES == v1.HEADER.size
    assert [name.strip() for _, _, name in table] == [
        "magic",
        "major version",
        "minor version",
        "length of the header",
        "length of the manifest",
        "length of the file",
        "digest",
        "reserved",
    ]
    assert v1.MAGIC.hex(" ").upper() in SPEC


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        ("1 to 2^28 bytes", v1.MAX_MANIFEST_BYTES == 1 << 28),
        ("at most 2^20 maps", v1.MAX_SECTIONS == 1 << 20),
        ("1 to 512 bytes", v1.MAX_NAME_BYTES == 512),
        ("more than 255 bytes", v1.MAX_PART_BYTES == 255),
        ("at most 64 characters", v1.MAX_FEATURE_BYTES == 64),
        ("at most 8 integers from 0 to 2^48", (v1.MAX_RANK, v1.MAX_EXTENT) == (8, 1 << 48)),
        ("is below 2^63. A section has", v1.MAX_SECTION_BITS == (1 << 63) - 1),
        ("nested at most 32 deep", v1.MAX_DEPTH == 32),
        ("at most 65536 + n / 4 values", (v1.FREE_VALUES, v1.BYTES_PER_VALUE) == (65536, 4)),
        ("first multiple of 64", v1.ALIGNMENT == 64),
    ],
)
def test_limits(sentence, value):
    assert sentence in " ".join(SPEC.split())
    assert value


def test_the_hex_dump_is_the_tiny_archive():
    dump = SPEC.split("```hexdump\n")[1].split("```")[0]
    data = b""
    for line in dump.splitlines():
        offset, rest = line.split("  ", 1)
        digits, shown = rest.split("  |")
        assert int(offset, 16) == len(data)
        part = bytes.fromhex(digits)
        assert shown == "".join(chr(b) if 32 <= b < 127 else "." for b in part) + "|"
        data += part
    assert data == (Path(make.HERE) / "accepted" / "tiny.bin").read_bytes()
