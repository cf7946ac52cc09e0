"""The public names, exactly; and what importing them brings along."""

from __future__ import annotations

import ast
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import get_args

import pytest

import reallm_compiler
import reallm_formats
from reallm_compiler import errors
from reallm_compiler.checkpoint import open_source

ROOT = Path(__file__).parent.parent
FUNCTIONS = (
    *(
        "allocate",
        "calibrate",
        "compile",
        "diff",
        "eval",
        "export",
        "kv_cache",
        "load",
        "load_recipe",
        "open",
        "open_tunable",
    ),
    *("plan", "reconstruct", "serve", "survey", "tune", "verify", "write_report"),
)
ERRORS = (
    *(
        "AdapterError",
        "AllocateError",
        "CalibrateError",
        "CodecError",
        "CompileError",
        "EvaluationError",
    ),
    *("ExportError", "FinetuneError", "FormatError", "Interrupted", "OutputError", "ReallmError"),
    *("RecipeError", "RegistryError", "ResumeError", "SourceError"),
)
EVENTS = (
    *("BatchDone", "BlockDone", "CalibrateStarted", "Checked", "ChunkDone", "FellBack"),
    *("FinetuneStarted", "MatricesWritten", "Preflight", "Sampled", "StepDone", "TaskDone"),
    *("TensorsRead", "Training", "TriedAgain"),
)
UNIONS = ("CalibrateEvent", "CompileEvent", "FinetuneEvent", "OnProgress", "Progress")
VALUES = (
    *(
        "AllocateReport",
        "Budget",
        "CalibrateReport",
        "CompileReport",
        "Damage",
        "Evaluation",
        "ExportReport",
    ),
    *("FinetuneOptions", "FinetuneReport", "MatrixBudget", "ModelArchive", "Plan", "Problem"),
    *("Recipe", "Server", "Survey", "Totals", "TunableModel"),
    *("Difference", "WrittenReport"),
)
NAMES = (*FUNCTIONS, *ERRORS, *EVENTS, *UNIONS, *VALUES)


def test_names_of_the_package() -> None:
    assert sorted(reallm_compiler.__all__) == sorted([*NAMES, "__version__"])
    for name in FUNCTIONS:
        assert callable(getattr(reallm_compiler, name)), name
    for name in (*ERRORS, *EVENTS, *VALUES):
        assert isinstance(getattr(reallm_compiler, name), type), name
    for name in ERRORS:
        assert issubclass(getattr(reallm_compiler, name), reallm_compiler.ReallmError), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", reallm_compiler.__version__)


def test_every_error_and_event_has_a_name() -> None:
    raised = {name for name in vars(errors) if name.endswith("Error")}
    assert raised <= set(ERRORS)
    events = {
        event
        for union in ("CalibrateEvent", "CompileEvent", "FinetuneEvent")
        for event in get_args(getattr(reallm_compiler, union))
    }
    assert events == {getattr(reallm_compiler, name) for name in EVENTS}


def test_a_type_checker_sees_what_is_imported_when_it_is_used() -> None:
    tree = ast.parse((ROOT / "reallm_compiler" / "__init__.py").read_text())
    seen = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in seen.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == reallm_compiler._HOMES
    assert set(homes) == set(NAMES)


def test_the_api_page_shows_every_name() -> None:
    shown = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.M))
    missing = [
        f"{module}.{name}"
        for module, name in reallm_compiler._HOMES.values()
        if f"{module}.{name}" not in shown and module not in shown
    ]
    assert missing == []


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


@pytest.mark.parametrize("name", reallm_compiler.__all__)
def test_each_described_argument_is_one(name):
    """As the site of the documentation wants it: an entry for each, by the name that it has."""
    described = getattr(reallm_compiler, name)
    text = inspect.getdoc(described) or ""
    if not callable(described) or "\nArgs:\n" not in text:
        return
    entries = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\S[^:\n]*):", entries, re.MULTILINE)
    assert found
    known = inspect.signature(described).parameters
    assert [one for one in found if one.lstrip("*") not in known] == []
