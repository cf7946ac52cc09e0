"""Going on with an interrupted run: only with the same inputs, and only with what is intact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm_compiler.errors import ResumeError
from reallm_compiler.runs.identity import check_same
from reallm_compiler.runs.journal import Journal
from reallm_compiler.runs.output import Output, intact_tasks
from reallm_compiler.runs.tasks import TaskGraph, TaskResult
from reallm_formats import Layout

IDENTITY = "identity"
"""Key of the journal's first record."""


def start(journal: Journal, identity: Mapping[str, Any]) -> None:
    """Begin a journal anew.

    Raises:
        CompileError: the disk refuses.
    """
    journal.clear()
    journal.append({IDENTITY: identity})


def finished_tasks(
    journal: Journal,
    graph: TaskGraph,
    identity: Mapping[str, Any],
    output: Output,
    layout: Layout,
    *,
    resume: str,
) -> dict[str, TaskResult] | None:
    """Finished tasks of an interrupted run that this one goes on with; None to start afresh.

    Args:
        journal: of the output.
        graph: all tasks of this run.
        identity: what decides the bytes of this run.
        output: where it writes.
        layout: of the file that it writes.
        resume: `auto`, `required` or `never`.

    Raises:
        ResumeError: the interrupted run had other inputs, or there is none and one is required.
    """
    found = journal.records[0].get(IDENTITY) if journal.records else None
    results = {
        record["task"]: TaskResult.from_record(record)
        for record in journal.records[1:]
        if "task" in record
    }
    interrupted = found is not None and (output.partial.exists() or output.is_finished(results))
    if resume == "required" and not interrupted:
        raise no_interrupted_run(output.path)
    if resume == "never" or not interrupted or found is None:
        return None
    check_same(found, identity, str(output.path))
    if not output.partial.exists():
        return results
    return intact_tasks(output.partial, layout, graph, results)


def no_interrupted_run(path: Path) -> ResumeError:
    """The error of a run that must go on, where there is nothing to go on with."""
    return ResumeError(
        "there is no interrupted run of this output",
        location=str(path),
        hint="leave out `--resume required` to start afresh",
    )
