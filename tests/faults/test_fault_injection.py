"""A draw of the cases in fault_injection.py, each with real processes and real signals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("fault_injection.py")


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fault_injection", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SCRIPTED = loaded()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return SCRIPTED.Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM, 1 worker",
        "SIGINT to the group, 2 workers",
        "SIGTERM to the group while workers start",
        "two compiles of one output",
        "a worker killed alone",
        "disk full in the journal",
        "read-only folder",
    ],
)
def test_case(bench: Any, name: str) -> None:
    try:
        SCRIPTED.CASES[name](bench, name)
    except SCRIPTED.SkippedError as reason:
        pytest.skip(str(reason))


def test_a_failure_is_seen(bench: Any) -> None:
    """The law itself refuses what it must: a traceback, another code, silence."""
    good = SCRIPTED.Result(7, "", "error: no\n")
    SCRIPTED.refused(good, 7, "error: no")
    for code, out, err in ((0, "", "error: no"), (7, "x", "error: no"), (7, "", "Traceback")):
        with pytest.raises(AssertionError):
            SCRIPTED.refused(SCRIPTED.Result(code, out, err), 7)
    with pytest.raises(AssertionError):
        SCRIPTED.refused(good, 7, "make room")
