"""The public names, exactly; and what importing them brings along."""

from __future__ import annotations

import subprocess
import sys

import reallm_compiler
import reallm_formats


def test_names_of_the_package() -> None:
    names = ["compile", "load", "load_recipe", "open", "open_tunable", "plan", "reconstruct"]
    names += ["tune"]
    assert sorted(reallm_compiler.__all__) == names
    for name in names:
        assert callable(getattr(reallm_compiler, name)), name


def test_names_of_the_container_are_there() -> None:
    for name in reallm_formats.__all__:
        assert getattr(reallm_formats, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(reallm_compiler, "compiel")


def test_import_and_plan_bring_no_torch() -> None:
    script = (
        "import sys, reallm_compiler as reallm\n"
        "plan = reallm.plan({'reallm': 1}, model={'shapes': {'a.weight': [4, 8]}})\n"
        "assert plan.budget().totals.weights == 32\n"
        "assert callable(reallm.plan), 'the room and the function share one name'\n"
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
