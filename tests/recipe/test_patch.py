"""The laws of merging: later wins, field by field, and a changed kind starts afresh."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.recipe.document import read_text
from reallm_compiler.recipe.nodes import MapNode, find, from_plain, leaves, to_plain
from reallm_compiler.recipe.patch import merge

scalars = st.integers(0, 3) | st.sampled_from(["x", "y"]) | st.booleans() | st.none()
keys = st.sampled_from(["kind", "a", "b", "c"])
values = st.recursive(
    scalars | st.lists(scalars, max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(keys, values, max_size=4)


def node(data, label="r"):
    tree, problems = from_plain(data, label)
    assert not problems
    return tree


def slow_merge(base, patch):
    """The law once more, on plain data."""
    if not (isinstance(base, dict) and isinstance(patch, dict)):
        return patch
    if "kind" in base and "kind" in patch and base["kind"] != patch["kind"]:
        return patch
    both = {key: slow_merge(base[key], patch[key]) for key in base if key in patch}
    return {**base, **both, **{key: patch[key] for key in patch if key not in base}}


@given(maps, maps)
def test_merge_on_plain_data(base, patch):
    assert to_plain(merge(node(base), node(patch))) == slow_merge(base, patch)


@given(maps, maps)
def test_later_wins(base, patch):
    merged = merge(node(base), node(patch))
    for path, leaf in leaves(node(patch)):
        found, rest = find(merged, tuple(path.split(".")))
        assert rest == ()
        assert to_plain(found) == to_plain(leaf)


@given(maps, maps)
def test_a_patch_put_on_twice_is_put_on_once(base, patch):
    once = merge(node(base), node(patch))
    assert to_plain(merge(once, node(patch))) == to_plain(once)


@given(maps)
def test_nothing_changes_nothing(base):
    assert to_plain(merge(node(base), node({}))) == base
    assert to_plain(merge(node({}), node(base))) == base


@given(maps, maps)
def test_each_field_is_the_node_of_its_last_writer(base, patch):
    merged = merge(node(base, "base"), node(patch, "patch"))
    for path, leaf in leaves(merged):
        steps = tuple(path.split("."))
        _, rest = find(node(patch), steps)
        assert leaf.location.file == ("base" if rest else "patch")


def test_the_inputs_stay_as_they_are():
    base, patch = node({"a": {"b": 1}}), node({"a": {"c": 2}})
    merge(base, patch)
    assert (to_plain(base), to_plain(patch)) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_parameters_of_another_kind_do_not_survive():
    base = node({"q": {"kind": "vq", "bits": 2, "dim": 4}})
    patch = node({"q": {"kind": "uniform", "bits": 3}})
    assert to_plain(merge(base, patch)) == {"q": {"kind": "uniform", "bits": 3}}


def test_locations_come_from_where_the_fields_are_written():
    base, _ = read_text("scales:\n  kind: rms\n  per: row\n", "base.yaml")
    patch, _ = read_text("scales: {per: tensor}\n", "own.yaml")
    merged = merge(base, patch)
    assert isinstance(merged, MapNode)
    locations = {path: str(leaf.location) for path, leaf in leaves(merged)}
    assert locations == {"scales.kind": "base.yaml:2:9", "scales.per": "own.yaml:1:15"}
