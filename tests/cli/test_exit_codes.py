"""Each mistake has its code, its words and no traceback; docs/cli.md has the same table."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reallm_cli import main as main_module
from reallm_cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from reallm_cli.main import main
from reallm_compiler import errors

ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_the_table():
    text = (ROOT / "docs" / "cli.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " | `" in line]
    documented = {int(row[0]): (row[1].strip("`"), row[2]) for row in rows if row[0].isdigit()}
    assert documented == {int(code): (code.name, MEANINGS[code]) for code in ExitCode}


def test_every_kind_of_error_has_a_code():
    kinds = [
        kind
        for name in errors.__all__
        if isinstance(kind := getattr(errors, name), type)
        and issubclass(kind, errors.ReallmError)
        and kind is not errors.ReallmError
    ]
    assert len(kinds) >= 8
    for kind in kinds:
        error = kind.__new__(kind)
        assert exit_code_of(error) is not ExitCode.BUG, kind


MISTAKES = {
    "unknown command": (
        ["budgte", "x"],
        ExitCode.USAGE,
        "error: there is no command `budgte`\n  at: `reallm`\n\nhint: did you mean `budget`?\n",
    ),
    "unknown command, nothing near": (
        ["xyzzy"],
        ExitCode.USAGE,
        "error: there is no command `xyzzy`\n  at: `reallm`\n\n"
        "hint: `reallm --help` lists the commands\n",
    ),
    "unknown sub-command": (
        ["recipes", "lst"],
        ExitCode.USAGE,
        "error: there is no command `lst`\n  at: `reallm recipes`\n\nhint: did you mean `list`?\n",
    ),
    "unknown option": (
        ["budget", "x", "--jsonn"],
        ExitCode.USAGE,
        "error: there is no option `--jsonn`\n  at: `reallm budget`\n\n"
        "hint: did you mean `--json`?\n",
    ),
    "missing argument": (
        ["verify"],
        ExitCode.USAGE,
        "error: missing argument `ARCHIVE`\n  at: `reallm verify`\n\n"
        "hint: `reallm verify --help` shows how to use it\n",
    ),
    "missing option": (
        ["reconstruct", "x.reallm"],
        ExitCode.USAGE,
        "error: missing option `--output`\n  at: `reallm reconstruct`\n\n"
        "hint: `reallm reconstruct --help` shows how to use it\n",
    ),
    "value out of range": (
        ["compile", "x", "--workers", "0"],
        ExitCode.USAGE,
        "error: option `--workers`: 0 is not in the range x>=1\n  at: `reallm compile`\n\n"
        "hint: `reallm compile --help` shows how to use it\n",
    ),
    "unknown shipped recipe": (
        ["recipes", "show", "reallm-3bti"],
        ExitCode.USAGE,
        None,
    ),
    "no model": (
        ["budget", "nf4"],
        ExitCode.BAD_SOURCE,
        "error: no model is named\n\n"
        "hint: add `model: path-or-hub-id` to the recipe, or give --model PATH\n",
    ),
    "no recipe file": (
        ["budget", "folder/of/mine.yaml"],
        ExitCode.BAD_RECIPE,
        "error: the recipe has 1 problem\n\n  folder/of/mine.yaml\n"
        "    there is no such recipe file\n"
        "    hint: `reallm recipes list` names the shipped ones\n",
    ),
    "no archive": (
        ["inspect", "nothing.reallm"],
        ExitCode.BAD_ARCHIVE,
        "error: there is no such archive\n  at: nothing.reallm\n\n"
        "hint: `reallm compile RECIPE --model MODEL -o FILE.reallm` makes one\n",
    ),
    "no folder of an archive": (
        ["verify", "no/such/a.reallm"],
        ExitCode.BAD_ARCHIVE,
        "error: there is no such archive\n  at: no/such/a.reallm\n"
        "  note: there is no folder `no/such`\n",
    ),
}


@pytest.mark.parametrize(("args", "code", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_in_full(run, tmp_path, monkeypatch, args, code, expected):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    if expected is not None:
        assert result.err == expected


def raising(error):
    def command(*args, **options):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (MemoryError(), 7, "error: memory ran out\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            11,
            "error: the system refused: permission denied\n  at: a/b\n",
        ),
        (
            ZeroDivisionError("by [zero]"),
            70,
            "error: this is a bug in reallm, and not a mistake of yours\n"
            "  what: ZeroDivisionError: by [zero]\n\n"
            "hint: run it again as `reallm --traceback ...` and report the text that it prints\n",
        ),
        (OSError("no number"), 70, "error: this is a bug in reallm"),
        (errors.ResumeError("another seed"), 8, "error: another seed\n"),
        (errors.CodecError("NaN"), 9, "error: NaN\n"),
        (errors.EvaluationError("too short"), 10, "error: too short\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_end_has_its_code(run, monkeypatch, error, code, start):
    monkeypatch.setattr(main_module.cli.commands["verify"], "callback", raising(error))
    result = run("verify", "x")
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith(start)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_traceback_of_a_bug_is_shown_on_request(run, monkeypatch, by):
    monkeypatch.setattr(
        main_module.cli.commands["verify"], "callback", raising(ZeroDivisionError("oh"))
    )
    if by == "variable":
        monkeypatch.setenv("REALLM_TRACEBACK", "1")
    result = run(*(["--traceback"] if by == "option" else []), "verify", "x")
    assert result.code == ExitCode.BUG
    assert result.err.startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError: oh" in result.err


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError

    def fileno(self):
        raise io.UnsupportedOperation


def test_a_closed_pipe_is_no_bug(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Closed())
    for args in (["recipes", "list"], ["recipes", "show", "nf4"]):
        assert main(args) == ExitCode.BROKEN_PIPE
    assert capsys.readouterr().err == ""


def test_a_real_pipe_that_closes_early_leaves_no_words():
    paths = [str(ROOT), str(ROOT / "formats"), str(ROOT / "cli")]
    process = subprocess.Popen(
        [sys.executable, "-c", "from reallm_cli.main import run; run()", "recipes", "schema"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == ExitCode.BROKEN_PIPE
