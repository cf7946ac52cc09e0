"""One byte string for one document, and nothing else is accepted."""

import math
import struct
from collections import OrderedDict

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import example, given, settings

from reallm_formats import FormatError, canonical
from reallm_formats.v1 import value_limit

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.binary(max_size=300)
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(TEXT, inner, max_size=20),
    max_leaves=30,
)
EDGES = [
    *(0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1),
    *(-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)),
]
LENGTHS = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]


def same(a, b):
    """Equal in type and value all the way down; 1, 1.0 and True are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return a == b


@given(DOCUMENTS)
def test_round_trip(document):
    data = canonical.encode(document)
    assert same(canonical.decode(data), canonical.normal(document))
    assert canonical.encode(canonical.decode(data)) == data


@given(DOCUMENTS)
def test_any_msgpack_reader_agrees(document):
    assert same(msgpack.unpackb(canonical.encode(document)), canonical.normal(document))


@pytest.mark.parametrize("value", EDGES)
def test_integer_edges(value):
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert data == msgpack.packb(value)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "make", [lambda n: "x" * n, bytes, lambda n: [None] * n], ids=["text", "bytes", "list"]
)
def test_length_edges(make, length):
    value = make(length)
    assert canonical.decode(canonical.encode(value)) == value


@pytest.mark.parametrize("length", [0, 15, 16, 10_000])
def test_map_lengths(length):
    value = {f"{i:05}": i for i in range(length)}
    assert canonical.decode(canonical.encode(value)) == value


def test_map_of_more_than_16_bits():
    value = {f"{i:05}": None for i in range(65_536)}
    assert canonical.decode(canonical.encode(value)) == value


@given(st.dictionaries(TEXT, st.integers(0, 9), min_size=2), st.randoms())
def test_order_in_does_not_matter(items, random):
    pairs = list(items.items())
    random.shuffle(pairs)
    assert canonical.encode(OrderedDict(pairs)) == canonical.encode(items)


def test_keys_are_sorted_by_their_bytes():
    # U+FFFF sorts before U+1F600 in UTF-8; in UTF-16 it would not.
    assert list(canonical.normal({"\U0001f600": 1, "\uffff": 2, "a": 3})) == [
        "a",
        "\uffff",
        "\U0001f600",
    ]


def test_exact_bytes():
    document = {"b": (1, -1), "a": {"f": 0.5, "n": None, "t": True, "x": b"\x00", "é": "é"}}
    assert canonical.encode(document) == bytes.fromhex(
        "82 a161 85 a166 cb3fe0000000000000 a16e c0 a174 c3 a178 c40100 a2c3a9 a2c3a9a162 92 01 ff"
    )


def test_a_copy_shares_nothing():
    document = {"a": [{"b": [1]}]}
    copy = canonical.normal(document)
    copy["a"][0]["b"].append(2)
    assert document == {"a": [{"b": [1]}]}


def nested(levels):
    value = 0
    for _ in range(levels):
        value = [value]
    return value


class Shout(str):
    __slots__ = ()


class Count(int):
    pass


class Share(float):
    pass


@pytest.mark.parametrize(
    ("document", "rule", "location"),
    [
        ({1: 2}, "C3", "document"),
        ({"a": [{None: 1}]}, "C3", "document.a[0]"),
        ({"a": {1, 2}}, "C5", "document.a"),
        ([2**64], "C5", "document[0]"),
        (-(2**63) - 1, "C5", "document"),
        (bytearray(b"x"), "C5", "document"),
        (Shout("x"), "C5", "document"),
        ({"a": Count(1)}, "C5", "document.a"),
        ({"a": Share(0.5)}, "C5", "document.a"),
        ({Shout("x"): 1}, "C3", "document"),
        ({"a": math.nan}, "C6", "document.a"),
        (-math.inf, "C6", "document"),
        ("\ud800", "C7", "document"),
        ({"\ud800": 1}, "C7", "document"),
        (nested(33), "C8", "document" + "[0]" * 32),
        ({"a": [None] * 90_000}, "C9", "document"),
    ],
)
def test_what_cannot_be_encoded(document, rule, location):
    with pytest.raises(FormatError) as caught:
        canonical.encode(document)
    assert (caught.value.rule, caught.value.location) == (rule, location)


def test_deepest_document():
    assert canonical.decode(canonical.encode(nested(32))) == nested(32)


def check_refused_or_canonical(data):
    refused = None
    try:
        value = canonical.decode(data)
    except FormatError as error:
        refused = error
    if refused is None:
        assert canonical.encode(value) == data
    else:
        assert refused.rule.startswith("C")
        assert refused.location.startswith("manifest, byte ")


@given(st.binary(max_size=60))
@example(b"\x81\xa1a\xcb\x80\x00\x00\x00\x00\x00\x00\x00")
@settings(max_examples=1000)
def test_bytes_are_refused_or_canonical(data):
    check_refused_or_canonical(data)


@given(DOCUMENTS, st.data())
@settings(max_examples=300)
def test_changed_encodings_are_refused_or_canonical(document, data):
    encoded = bytearray(canonical.encode(document))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    check_refused_or_canonical(bytes(encoded))


def test_every_first_byte():
    """All 256, alone and followed by zeros."""
    for tag in range(256):
        for tail in (b"", bytes(1), bytes(8), bytes(40)):
            check_refused_or_canonical(bytes([tag]) + tail)
            check_refused_or_canonical(b"\x81" + bytes([tag]) + tail)


def test_only_text_is_a_key():
    """Of all first bytes of a key, those of text pass: the empty text and nil are neighbours."""
    assert canonical.decode(b"\x81\xa0\xc0") == {"": None}
    for tag in {*range(256)} - {*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB}:
        with pytest.raises(FormatError) as caught:
            canonical.decode(b"\x81" + bytes([tag]) + bytes(40))
        assert caught.value.rule == "C3"


def test_locations_count_from_the_base():
    with pytest.raises(FormatError, match=r"^manifest, byte 129: .* shortest form$"):
        canonical.decode(b"\x91\xcc\x01", base=128)


def test_the_largest_number_of_values():
    """Encoder and decoder agree on the last list that passes rule C9."""
    count = 2**16
    while count + 2 <= value_limit(count + 6):
        count += 1
    data = canonical.encode([None] * count)
    assert len(canonical.decode(data)) == count
    longer = b"\xdd" + struct.pack(">I", count + 1) + b"\xc0" * (count + 1)
    for act in (lambda: canonical.encode([None] * (count + 1)), lambda: canonical.decode(longer)):
        with pytest.raises(FormatError) as caught:
            act()
        assert caught.value.rule == "C9"
