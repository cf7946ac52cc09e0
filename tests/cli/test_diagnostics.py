"""Errors as people see them, in full text."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from reallm_cli.diagnostics import render_error
from reallm_cli.terminal import Terminal
from reallm_compiler.errors import Problem, RecipeError, SourceError


def plain(error, encoding="utf-8"):
    return render_error(error, encoding=encoding).plain


CASES = {
    "message only": (SourceError("no model is named"), "error: no model is named"),
    "all parts": (
        SourceError(
            "the shard is missing",
            location="models/a/model-00002.safetensors",
            note="the index names it",
            hint="download the folder again",
        ),
        "error: the shard is missing\n"
        "  at: models/a/model-00002.safetensors\n"
        "  note: the index names it\n"
        "\n"
        "hint: download the folder again",
    ),
    "hint only": (
        SourceError("no model is named", hint="give --model PATH"),
        "error: no model is named\n\nhint: give --model PATH",
    ),
    "markup is text": (
        SourceError("[bold]x[/bold] and [/] and :smile:", location="[red]a"),
        "error: [bold]x[/bold] and [/] and :smile:\n  at: [red]a",
    ),
    "control characters are escapes": (
        SourceError("a\x1b[31mb\rc\x07"),
        "error: a\\x1b[31mb\\rc\\x07",
    ),
    "several lines stay aligned": (
        SourceError("two", note="one\ntwo"),
        "error: two\n  note: one\n    two",
    ),
    "recipe": (
        RecipeError(
            [
                Problem(
                    location="a.yaml:4:12",
                    path="defaults.quantizer.bitz",
                    message="`bitz` is not a parameter of `vq`",
                    hint="did you mean `bits`?",
                ),
                Problem(location="a.yaml:9:3", path="rules[1]", message="neither set nor keep"),
                Problem(location="a.yaml", path="", message="the file is empty"),
            ],
            note="nothing was planned",
        ),
        "error: the recipe has 3 problems\n"
        "\n"
        "  a.yaml:4:12  defaults.quantizer.bitz\n"
        "    `bitz` is not a parameter of `vq`\n"
        "    hint: did you mean `bits`?\n"
        "\n"
        "  a.yaml:9:3  rules[1]\n"
        "    neither set nor keep\n"
        "\n"
        "  a.yaml\n"
        "    the file is empty\n"
        "\n"
        "  note: nothing was planned",
    ),
}


@pytest.mark.parametrize(("error", "expected"), CASES.values(), ids=CASES)
def test_rendered_text(error, expected):
    assert plain(error) == expected


@pytest.mark.parametrize(("error", "expected"), CASES.values(), ids=CASES)
def test_colour_adds_nothing_but_style(error, expected):
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, color_system="standard", width=200)
    screen.print(render_error(error), soft_wrap=True)
    coloured = written.getvalue()
    assert "\x1b[" in coloured
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, color_system=None, width=200)
    screen.print(render_error(error), soft_wrap=True)
    assert written.getvalue() == expected + "\n"


def test_other_letters_become_escapes_where_the_stream_has_none():
    error = SourceError("there is no `modèle`", location="größe/模型")
    assert plain(error) == "error: there is no `modèle`\n  at: größe/模型"
    assert plain(error, "ascii") == (
        "error: there is no `mod\\xe8le`\n  at: gr\\xf6\\xdfe/\\u6a21\\u578b"
    )


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "styled"), [("", True), ("1", False)])
def test_no_color_takes_every_style_away(monkeypatch, no_color, styled):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Tty()
    Terminal(err=stream).log(render_error(SourceError("wrong", hint="do it")))
    assert ("\x1b[" in stream.getvalue()) is styled


def test_a_pipe_is_never_wrapped_nor_coloured():
    stream = io.StringIO()
    Terminal(out=stream).data("word " * 200)
    assert stream.getvalue() == "word " * 200 + "\n"


def test_json_has_no_numbers_that_json_does_not_know():
    stream = io.StringIO()
    Terminal(out=stream).json({"a": float("nan"), "b": [float("inf"), 1.5], "c": b"\x01\xff"})
    assert stream.getvalue() == (
        '{\n  "a": null,\n  "b": [\n    null,\n    1.5\n  ],\n  "c": "01ff"\n}\n'
    )


@pytest.mark.parametrize("count", [0, 3, 1001])
def test_a_long_list_of_maps_has_one_map_a_line(count):
    payload = {"rows": [{"name": f"m{i}", "shape": [1, i]} for i in range(count)], "n": {"a": []}}
    stream = io.StringIO()
    Terminal(out=stream).json(payload)
    text = stream.getvalue()
    assert json.loads(text) == payload
    if count < 1000:
        assert text == json.dumps(payload, indent=2) + "\n"
    else:
        assert text.splitlines()[2] == '    {"name": "m0", "shape": [1, 0]},'
        assert len(text.splitlines()) < count + 10
