"""Names of embedded files: what an archive cannot hold is refused with its place in the folder."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.errors import SourceError
from reallm_compiler.sources import open_source

NAMES = {
    "colon": (b"a:b.jinja", "a backslash or a colon"),
    "backslash": (b"a\\b.jinja", "a backslash or a colon"),
    "control character": (b"a\nb.jinja", "control character U+000A"),
    "no text": (b"a\xff.jinja", "not UTF-8"),
}


@pytest.mark.parametrize(("name", "note"), NAMES.values(), ids=NAMES.keys())
def test_odd_name_of_a_template(tmp_path, name, note):
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "plain.jinja").write_text("x")
    assert any(path.endswith("plain.jinja") for path, _ in open_source(tmp_path).files)
    (folder / os.fsdecode(name)).write_text("x")
    with pytest.raises(SourceError, match="cannot be carried") as caught:
        open_source(tmp_path)
    assert note in caught.value.note
    assert caught.value.location == str(folder / os.fsdecode(name))
