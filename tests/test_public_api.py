"""The public names, exactly; and what importing them brings along."""

from __future__ import annotations

import pickle
import pydoc
import re
import subprocess
import sys
import traceback

import pytest

import reallm_compiler
import reallm_formats
from reallm_compiler.checkpoint import open_source

NAMES = (
    *("ReallmError", "calibrate", "compile", "eval", "load", "load_recipe", "open"),
    *("open_tunable", "plan", "reconstruct", "survey", "tune", "verify"),
)


def test_names_of_the_package() -> None:
    assert sorted(reallm_compiler.__all__) == sorted([*NAMES, "__version__"])
    for name in NAMES:
        assert callable(getattr(reallm_compiler, name)), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", reallm_compiler.__version__)


def test_dir_and_help_show_them_and_nothing_else() -> None:
    public = [name for name in dir(reallm_compiler) if not name.startswith("__")]
    assert public == sorted(NAMES)
    shown = pydoc.plain(pydoc.render_doc(reallm_compiler))
    for name in ("compile_model(", "open_archive(", "reconstruct(", "survey_model("):
        assert name in shown, name


def test_what_is_returned_is_shown_in_one_line() -> None:
    shapes = {f"layers.{layer}.up_proj.weight": [8, 16] for layer in range(200)}
    plan = reallm_compiler.plan({"reallm": 1}, model={"shapes": shapes})
    for made in (
        plan,
        plan.budget(),
        reallm_compiler.load_recipe("nf3"),
        open_source({"shapes": shapes}),
    ):
        assert repr(made).startswith(type(made).__name__ + "(")
        assert len(repr(made)) < 120


def test_note_and_hint_are_shown_in_a_traceback() -> None:
    with pytest.raises(reallm_compiler.ReallmError) as caught:
        reallm_compiler.plan("reallm-2bti", model={"shapes": {"a.weight": [4, 8]}})
    shown = "".join(traceback.format_exception(caught.value))
    assert "reallm-2bit" in shown
    error = reallm_compiler.ReallmError("wrong", note="why", hint="what to do")
    assert error.__notes__ == ["note: why", "hint: what to do"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__
    assert reallm_compiler.ReallmError("wrong").__notes__ == []


def test_names_of_the_container_are_there() -> None:
    for name in reallm_formats.__all__:
        assert getattr(reallm_formats, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(reallm_compiler, "compiel")


def test_import_and_plan_bring_no_torch() -> None:
    script = (
        "import sys, reallm_compiler as reallm\n"
        "plan = reallm.plan({'reallm': 1}, model={'shapes': {'a.weight': [4, 8]}})\n"
        "assert plan.budget().totals.numel == 32\n"
        "loaded = {'torch', 'transformers', 'click', 'rich'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
