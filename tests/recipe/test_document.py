"""YAML to located nodes: values, places, limits, and the text of each refusal."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.errors import RecipeError
from reallm_compiler.recipe.document import MAX_BYTES, _loader, read_file, read_text
from reallm_compiler.recipe.nodes import MapNode, ScalarNode, find, to_plain

VALUES = {
    "7.2e6": 7_200_000,
    "1e-3": 0.001,
    "1e3": 1000,
    "64.0": 64,
    "2.5": 2.5,
    ".5": 0.5,
    "-3": -3,
    "+3": 3,
    "010": 10,
    "0x1F": 31,
    "0o17": 15,
    "9223372036854775807": 2**63 - 1,
    "1/64": "1/64",
    "true": True,
    "False": False,
    "TRUE": True,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "null": None,
    "~": None,
    "": None,
    "12:30": "12:30",
    "2024-01-01": "2024-01-01",
    ".inf": ".inf",
    ".nan": ".nan",
    "1_000": "1_000",
    "0-3": "0-3",
    "-4..": "-4..",
    "'3'": "3",
    '"true"': "true",
    "!!str 3": "3",
    "!!int 3": 3,
    "!!float 3": 3,
    "!!bool true": True,
    "[1, a]": [1, "a"],
    "{a: {b: 1}}": {"a": {"b": 1}},
}


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text or "nothing")
def test_values_have_no_traps(text):
    tree, problems = read_text(f"key: {text}", "r.yaml")
    value = to_plain(tree)["key"]
    assert problems == []
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


def billion_laughs(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def alias_chain(levels: int) -> str:
    """Aliases that hold aliases: shallow as text, deep as a tree."""
    lines = ["l0: &l0 [x]", *(f"l{n}: &l{n} [*l{n - 1}]" for n in range(1, levels))]
    return "\n".join(lines)


REFUSED = {
    "empty": ("", "r.yaml: the recipe is empty (start with `reallm: 1`)"),
    "comment": ("# only\n", "r.yaml: the recipe is empty (start with `reallm: 1`)"),
    "tab": (
        "a:\n\tb: 1",
        "r.yaml:2:1: a tab cannot indent; use spaces (check indentation, quotes and brackets)",
    ),
    "colon": (
        "a: b: c",
        "r.yaml:1:5: a `:` is not allowed here; quote the text before it "
        "(check indentation, quotes and brackets)",
    ),
    "bracket": (
        "a: 1\nb: [1, 2\nc: 3",
        "r.yaml:3:2: a `,` or `]` is missing before this (check indentation, quotes and brackets)",
    ),
    "quote": (
        "a: 'b",
        "r.yaml:1:6: the text ends inside a quoted value (check indentation, quotes and brackets)",
    ),
    "glob": (
        "match: *.q_proj",
        "r.yaml:1:9: a value that starts with `*` or `&` needs quotes "
        "(check indentation, quotes and brackets)",
    ),
    "indentation": (
        "rules:\n  - a\n - b",
        "r.yaml:3:2: this line does not fit the indentation of the lines above "
        "(check indentation, quotes and brackets)",
    ),
    "control character": ("a: 1\nb: x\x07", "r.yaml:2:5: the character '\\x07' is not allowed"),
    "second document": (
        "a: 1\n---\nb: 1",
        "r.yaml:2:1: a recipe is one YAML document; a second starts here",
    ),
    "python tag": (
        "a: !!python/object/apply:os.system [ls]",
        "r.yaml:1:4: the tag `!!python/object/apply:os.system` is not allowed",
    ),
    "own tag": ("a: !secret x", "r.yaml:1:4: the tag `!secret` is not allowed"),
    "wrong tag": ("a: !!int x", "r.yaml:1:4: `x` does not fit the tag `!!int`"),
    "list as key": ("? [a, b]\n: 1", "r.yaml:1:3: a key must be a word"),
    "unknown anchor": ("a: *b", "r.yaml:1:4: no anchor `&b` comes before this"),
    "anchor in itself": ("a: &a [*a]", "r.yaml:1:8: `*a` stands inside itself"),
    "billion laughs": (
        billion_laughs(12),
        "r.yaml:6:15: a recipe holds at most 200000 values, aliases written out",
    ),
    "deep aliases": (alias_chain(40), "r.yaml:32:12: nested more than 32 deep"),
    "deep": ("[" * 5000, "r.yaml:1:34: nested more than 32 deep"),
    "huge integer": ("a: " + "9" * 5000, f"r.yaml:1:4: the number `{'9' * 27}...` is out of range"),
    "huge exponent": ("a: 1e999999999", "r.yaml:1:4: the number `1e999999999` is out of range"),
    "huge hex": (
        "a: 0xffffffffffffffff",
        "r.yaml:1:4: the number `0xffffffffffffffff` is out of range",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    text, expected = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        read_text(text, "r.yaml")
    assert str(caught.value) == expected


def test_problems_that_do_not_stop_the_reading():
    text = "a: 1\nb: {c: 1, c: 2}\na: 2\n<<: {d: 1}\n"
    tree, problems = read_text(text, "r.yaml")
    assert [str(problem) for problem in problems] == [
        "r.yaml:2:11: b.c: `c` is written twice; first in line 2",
        "r.yaml:3:1: a: `a` is written twice; first in line 1",
        "r.yaml:4:1: merge keys (`<<`) are not part of the recipe language "
        "(use `extends`, or a rule)",
    ]
    assert to_plain(tree) == {"a": 1, "b": {"c": 1}}


def test_every_key_and_value_has_its_location():
    text = "reallm: 1\ndefaults:\n  scales: {kind: rms,\n    per: row}\nrules:\n  - match: a\n"
    tree, _ = read_text(text, "r.yaml")
    locations = {
        ("reallm",): "r.yaml:1:9",
        ("defaults",): "r.yaml:3:3",
        ("defaults", "scales"): "r.yaml:3:11",
        ("defaults", "scales", "per"): "r.yaml:4:10",
        ("rules",): "r.yaml:6:3",
        ("rules", 0, "match"): "r.yaml:6:12",
    }
    for path, location in locations.items():
        node, rest = find(tree, path)
        assert (str(node.location), rest) == (location, ())
    node, _ = find(tree, ("rules", 0, "match"))
    assert node.path == "rules[0].match"
    scales, _ = find(tree, ("defaults", "scales"))
    assert isinstance(scales, MapNode)
    assert str(scales.key_location("per")) == "r.yaml:4:5"


def test_an_alias_keeps_its_location_and_gets_its_path():
    tree, _ = read_text("a: &x {b: 1}\nc: *x", "r.yaml")
    node, _ = find(tree, ("c", "b"))
    assert isinstance(node, ScalarNode)
    assert (node.value, str(node.location), node.path) == (1, "r.yaml:1:11", "c.b")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfreallm: 1\n")
    assert to_plain(read_file(path)[0]) == {"reallm": 1}


def test_files_that_cannot_be_read(tmp_path: Path):
    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes(b"reallm: 1\nnote: caf\xe9\n")
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    cases = {
        tmp_path / "absent.yaml": "absent: there is no such file",
        tmp_path: "folder: this is a folder, not a recipe file",
        latin: "latin:2:10: the file is not UTF-8 text",
        large: "large: a recipe is at most 16777216 bytes long; this file has more",
    }
    for path, expected in cases.items():
        label = expected.split(":")[0]
        with pytest.raises(RecipeError) as caught:
            read_file(path, label)
        assert str(caught.value) == expected


@given(st.text(alphabet="ab:-[]{}&*!#|>'\"\n \t%@0.e\x85\u2028", max_size=40))
def test_no_text_breaks_the_reader(text):
    with contextlib.suppress(RecipeError):
        to_plain(read_text(text, "r.yaml")[0])


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with contextlib.suppress(RecipeError):
        to_plain(read_file(path)[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def outcome(text):
    try:
        tree, problems = read_text(text, "r.json")
    except RecipeError as error:
        return [(problem.location, problem.message) for problem in error.problems]
    return repr(tree), problems  # repr, as nan is not itself


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML is without libyaml")
@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.sampled_from([None, 2]))
def test_json_is_read_alike_by_libyaml_and_by_pyyaml(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    with_libyaml = outcome(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader")
        assert outcome(text) == with_libyaml


def test_which_loader_reads_what():
    assert _loader('{"a": [1, "\\n"]}') is getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for text in ("a: 1", '{"a":\t1}', '{"a": "\\ud83d\\ude00"}', '{"a": "\u00e9"}', "[" * 10**6):
        assert _loader(text) is yaml.SafeLoader
