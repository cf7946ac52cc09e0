"""Both sides of each limit: the last value that passes and the first that does not."""

import pytest

from reallm_formats import Archive, FormatError, layout, parse_model, parse_name, v1
from reallm_formats.kinds.adapter import parse_adapter
from reallm_formats.sections import check_shape
from vectors import forge, samples

EMPTY = forge.MODEL
MOST = v1.MAX_EXTENT
FACTOR = (2**63 - 1) // 454_279  # 7 x 7 x 73 x 127 is a divisor


def plan(*sections, features=()):
    return layout(kind="model", document=EMPTY, sections=sections, features=features)


def model(**changes):
    return parse_model(samples.model(matrices=[{**samples.MATRIX, **changes}]))


def adapter(**changes):
    row = {**samples.ROW, "rank": 0, "gain": False, **changes}
    return parse_adapter(samples.adapter(matrices=[row]))


def opened(header):
    return Archive(memoryview(forge.archive(header=header)))


@pytest.mark.parametrize(
    ("build", "last", "first", "rule"),
    [
        (lambda n: parse_name("tensor:" + "a" * (n - 7)), 512, 513, "S2"),
        (lambda n: parse_name("file:" + "é" * (n // 2) + "a" * (n % 2)), 255, 256, "S5"),
        (lambda n: plan(("tensor:a", "u8", [1] * n)), 8, 9, "S7"),
        (lambda n: plan(("tensor:a", "u8", (n,))), MOST, MOST + 1, "S7"),
        (lambda n: plan(("tensor:a", "u8", (n,))), 0, -1, "S7"),
        (lambda n: plan(("tensor:a", "f64", (n, 2**33, 0))), 2**24 - 1, 2**24, "S7"),
        (lambda n: check_shape([454_279, n], "b1", "here"), FACTOR, FACTOR + 1, "S7"),
        (lambda n: model(shape=[n, 1]), 1, 0, "D2"),
        (lambda n: model(shape=[1, n]), MOST, MOST + 1, "D2"),
        (lambda n: model(index=n), 0, -1, "D2"),
        (lambda n: model(index=n), 0, MOST + 1, "D2"),
        (lambda n: model(index=n), 0, 1, "D8"),
        (lambda n: model(method=n), 0, -1, "D2"),
        (lambda n: model(relative_error=n), 0.0, -5e-324, "D2"),
        (lambda n: adapter(shape=[n, 1]), 1, 0, "A3"),
        (lambda n: adapter(shape=[1, n]), MOST, MOST + 1, "A3"),
        (lambda n: adapter(rank=n), 0, -1, "A3"),
        (lambda n: adapter(rounding_error=n), 0.0, -5e-324, "A3"),
        (lambda n: opened({"manifest_bytes": n}), 87, 88, "H5"),
        (lambda n: opened({"file_bytes": n}), 215, 214, "H4"),
    ],
    ids=[
        *("name", "part-of-path", "rank", "extent", "extent-0", "bits", "odd-bits", "matrix-row"),
        *("matrix-extent", "index-0", "index", "index-of-one", "method", "error", "adapter-row"),
        *("adapter-extent", "adapter-rank", "adapter-error", "manifest", "file"),
    ],
)
def test_limit(build, last, first, rule):
    build(last)
    with pytest.raises(FormatError) as caught:
        build(first)
    assert caught.value.rule == rule


def test_lengths_of_a_layout(monkeypatch):
    length = plan().manifest_bytes
    end = plan(("tensor:a", "u8", (1,))).file_bytes
    monkeypatch.setattr(v1, "MAX_MANIFEST_BYTES", length)
    plan()
    monkeypatch.setattr(v1, "MAX_MANIFEST_BYTES", length - 1)
    with pytest.raises(FormatError, match="too long"):
        plan()
    monkeypatch.setattr(v1, "MAX_MANIFEST_BYTES", 1 << 28)
    monkeypatch.setattr(v1, "MAX_FILE_BYTES", end)
    plan(("tensor:a", "u8", (1,)))
    with pytest.raises(FormatError, match="too long"):
        plan(("tensor:a", "u8", (2,)))


def test_number_of_sections(monkeypatch):
    monkeypatch.setattr(v1, "MAX_SECTIONS", 2)
    rows = [(f"tensor:{i}", "u8", (1,)) for i in range(3)]
    plan(*rows[:2])
    with pytest.raises(FormatError) as caught:
        plan(*rows)
    assert caught.value.rule == "S1"


def test_length_of_a_feature(monkeypatch):
    monkeypatch.setattr(v1, "FEATURES", frozenset({"a" * 64, "a" * 65}))
    plan(features=["a" * 64])
    with pytest.raises(FormatError) as caught:
        plan(features=["a" * 65])
    assert caught.value.rule == "M4"


def test_words_for_lengths_and_versions():
    whole = forge.archive([samples.TEXT])
    cases = {
        whole[:-1]: "cut short",
        whole + b"\0": "longer than it was written",
        b"": "the file is empty",
    }
    for data, message in cases.items():
        with pytest.raises(FormatError, match=message):
            Archive(memoryview(data))
    for major, hint in ((0, None), (2, "install a newer reallm")):
        with pytest.raises(FormatError, match=f"major version {major}") as caught:
            opened({"major": major})
        assert caught.value.hint == hint
