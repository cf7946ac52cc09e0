"""What a source may hold at most, an archive can hold: no limit of the format shows up late."""

from __future__ import annotations

import pytest

from reallm_compiler.checkpoint.headers import AXES_LIMIT, NAME_LIMIT
from reallm_compiler.errors import SourceError
from reallm_compiler.planning.build import plan

LARGEST = {
    "axes": ("a", [1] * AXES_LIMIT),
    "name": ("a" * (NAME_LIMIT - 7) + ".weight", [64, 64]),
    "name of a vector": ("a" * (NAME_LIMIT - 7) + ".weight", [64]),
    "name of long letters": ("\u00e4" * (NAME_LIMIT // 2), [64, 64]),
    "name of experts": ("a" * (NAME_LIMIT - 21) + ".experts.gate_up_proj", [2, 64, 64]),
}


@pytest.mark.parametrize("recipe", ["paper-2bit", "paper-hnerv"])
@pytest.mark.parametrize(("name", "shape"), LARGEST.values(), ids=LARGEST.keys())
def test_an_archive_holds_whatever_is_read(name, shape, recipe):
    assert plan(recipe, model={"shapes": {name: shape}}).layout.file_bytes


TOO_MUCH = {
    "bytes": ({"a": [2**28, 2**28]}, "no archive can hold"),
    "experts": ({"mlp.experts.gate_up_proj": [2**40, 8, 8]}, "experts"),
}


@pytest.mark.parametrize(("shapes", "message"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_more_than_any_archive_holds(shapes, message):
    with pytest.raises(SourceError, match=message):
        plan("rtn-4bit", model={"shapes": shapes})
