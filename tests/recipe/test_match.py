"""Patterns of names and ranges of layers."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.recipe.match import Pattern, parse_layers

NAME = "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (NAME, True),
        ("*.q_proj", True),
        ("*q_proj", True),
        ("model.layers.?.self_attn.[qk]_proj", True),
        ("model.layers.[!4].*", True),
        ("*", True),
        ("q_proj", False),
        ("*.Q_PROJ", False),
        ("model.layers.3", False),
        ("re:.*\\.(q|k)_proj", True),
        ("re:q_proj", False),
        ("re:model\\.layers\\.\\d+\\..*", True),
    ],
)
def test_patterns(pattern, matches):
    assert Pattern(pattern).matches(NAME) is matches


@given(st.text(alphabet="ab.*?[]!-", min_size=1, max_size=8), st.text(alphabet="ab.", max_size=8))
def test_an_exact_pattern_matches_its_name_alone(text, name):
    pattern = Pattern(text)
    if pattern.exact is not None:
        assert pattern.matches(name) is (name == pattern.exact)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a pattern must not be empty"),
        ("re:", "a pattern must not be empty"),
        ("re:(a", "not a regular expression: missing ), unterminated subpattern at position 0"),
        ("re:a{99999999999}", "not a regular expression: the repetition number is too large"),
    ],
)
def test_bad_patterns(text, message):
    with pytest.raises(ValueError) as caught:
        Pattern(text)
    assert str(caught.value) == message


def layers(value, count):
    return sorted({layer for one in parse_layers(value) for layer in one.resolve(count)})


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (3, 8, [3]),
        (-1, 8, [7]),
        ("3", 8, [3]),
        ("0-3", 8, [0, 1, 2, 3]),
        ("0..3", 8, [0, 1, 2, 3]),
        ("2..", 4, [2, 3]),
        ("..2", 8, [0, 1, 2]),
        ("-4..", 32, [28, 29, 30, 31]),
        ("-4..-2", 8, [4, 5, 6]),
        ("-4--2", 8, [4, 5, 6]),
        ("1..-2", 4, [1, 2]),
        ("0-3,-4..", 32, [0, 1, 2, 3, 28, 29, 30, 31]),
        ("0, 2", 8, [0, 2]),
        ([0, 5, -1], 8, [0, 5, 7]),
        (["0-1", 5], 8, [0, 1, 5]),
        ("0-9", 2, [0, 1]),
        (9, 8, []),
        (-9, 8, []),
        ("2..", 2, []),
    ],
)
def test_layers(value, count, expected):
    assert layers(value, count) == expected


@pytest.mark.parametrize(
    "value", ["", "a", "1-", "-", "..", "1-2-3", "1.5", [], [[]], True, None, 2.5]
)
def test_no_layers(value):
    with pytest.raises(ValueError, match="layers as"):
        parse_layers(value)


EXPLODING = {
    "nested": r"(.*)*x",
    "alternatives": r"(a|a)*x",
    "fixed-count-of-optionals": r"(a?){40}a{40}",
    "in-a-look-ahead": r"x(?=(a+)+)y",
    "many-repetitions": r".*.*.*.*.*.*x",
    "many-choices": "(a|aa)" * 9,
}


@pytest.mark.parametrize("expression", EXPLODING.values(), ids=EXPLODING.keys())
def test_an_expression_that_could_take_for_ever(expression):
    with pytest.raises(ValueError, match="exponential time"):
        Pattern(f"re:{expression}")


@pytest.mark.parametrize(
    "expression",
    [
        r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|up)_proj",
        r"(?:ab)+",
        r"(?:a\d{3})*",
        r"(\d+)\.\1",
        r".*layers\.[0-9]+\..*\.experts\.[0-9]+\..*",
    ],
)
def test_expressions_that_cannot(expression):
    assert not Pattern(f"re:{expression}").matches("a" * 500)


def test_backwards():
    with pytest.raises(ValueError, match="`5-3` ends before it begins"):
        parse_layers("5-3")


@given(st.integers(0, 9), st.integers(-9, 9), st.integers(-9, 9))
def test_written_ranges_are_read_back(count, first, last):
    if (first < 0) == (last < 0) and first > last:
        return
    (one,) = parse_layers(f"{first}..{last}")
    (again,) = parse_layers(str(one))
    assert list(again.resolve(count)) == list(one.resolve(count))
    real = [layer for layer in range(count) if _inside(layer, first, last, count)]
    assert list(one.resolve(count)) == real


def _inside(layer, first, last, count):
    low = first if first >= 0 else count + first
    high = last if last >= 0 else count + last
    return low <= layer <= high


@given(st.text("ab.*", min_size=1, max_size=8), st.text("ab.\n", max_size=10))
def test_stars_match_as_an_expression_would(glob: str, name: str) -> None:
    assert Pattern(glob).matches(name) == bool(re.fullmatch(fnmatch.translate(glob), name))
