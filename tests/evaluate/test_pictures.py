"""Pictures: what they show, where they may be written, and what they need."""

from __future__ import annotations

import sys

import pytest
import torch

from reallm_compiler.errors import EvaluationError, OutputError
from reallm_compiler.evaluate.charts import check_charts
from reallm_compiler.evaluate.pictures import PIXELS, draw_heatmap, thinned


def noise(p, q):
    return torch.randn(p, q, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG"), ("f.SVG", b"<?xml")])
def test_a_heatmap_shows_the_error(name, start, tmp_path):
    whole = noise(64, 96)
    picture = tmp_path / name
    assert draw_heatmap(picture, "m", whole, whole * 0.9) == pytest.approx(0.1, abs=1e-6)
    before = picture.read_bytes()
    draw_heatmap(picture, "m", whole, whole * 0.9)
    assert picture.read_bytes() == before
    assert before.startswith(start)
    with pytest.raises(EvaluationError, match="96 x 64, the archive's 64 x 96"):
        draw_heatmap(picture, "m", whole.t(), whole)


def test_large_matrices_are_thinned():
    assert thinned(torch.zeros(PIXELS, 10)).shape == (PIXELS, 10)
    assert thinned(torch.zeros(2 * PIXELS + 1, 10)).shape == (683, 4)


def test_pictures_replace_pictures_only(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("mine")
    with pytest.raises(OutputError, match="is not a picture"):
        draw_heatmap(text, "m", noise(64, 96), noise(64, 96))
    assert text.read_text() == "mine"
    mine = tmp_path / "mine.svg"
    mine.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(OutputError, match="is not a picture"):
        draw_heatmap(mine, "m", noise(64, 96), noise(64, 96))
    with pytest.raises(OutputError, match="a PNG or an SVG file"):
        draw_heatmap(tmp_path / "f.jpg", "m", noise(64, 96), noise(64, 96))
    with pytest.raises(OutputError, match="no such folder"):
        draw_heatmap(tmp_path / "no" / "f.png", "m", noise(64, 96), noise(64, 96))


def test_a_folder_of_charts_is_checked_before_the_work(tmp_path):
    (tmp_path / "error.png").write_text("mine")
    with pytest.raises(OutputError, match="is not a picture"):
        check_charts(tmp_path)
    with pytest.raises(OutputError, match="cannot be made"):
        check_charts(tmp_path / "error.png" / "folder")


def test_without_matplotlib_the_way_out_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EvaluationError, match="matplotlib") as caught:
        draw_heatmap(tmp_path / "f.png", "m", noise(64, 96), noise(64, 96))
    assert caught.value.hint == "install it with `pip install 'reallm-compiler[plots]'`"
