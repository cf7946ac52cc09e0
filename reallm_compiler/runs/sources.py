"""The weights that a run reads stay what they are, from its first task to its last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from reallm_compiler.errors import ResumeError, SourceError
from reallm_compiler.runs.tasks import TaskResult, source_digests

SHOWN = 3
"""Names of changed tensors that a message shows."""


def checked_sources(
    results: Iterable[TaskResult], done: Mapping[str, TaskResult], folder: str
) -> Iterator[TaskResult]:
    """The results, as long as no tensor is another than when a task before has read it.

    Args:
        results: as tasks end.
        done: what was finished before.
        folder: the checkpoint, for the message.

    Raises:
        SourceError: a tensor was read twice and is not the same; names it.
    """
    known = source_digests(done.values())
    for result in results:
        for name, hexes in result.source.items():
            if known.setdefault(name, hexes) != hexes:
                raise SourceError(
                    f"{name.partition('#')[0]} has changed while it was read",
                    location=folder,
                    note="continuing would mix two models",
                    hint="leave the checkpoint alone and start over with `--resume never`",
                )
        yield result


def check_digests(
    folder: str, wanted: Mapping[str, str], found: Mapping[str, str], run: str
) -> None:
    """Weights have the digests that an interrupted run read.

    Args:
        folder: the checkpoint, for the message.
        wanted, found: digests then and now, by tensor or `tensor#offset`.
        run: what was interrupted, in a word.

    Raises:
        ResumeError: some differ; names them.
    """
    changed = sorted(
        {name.partition("#")[0] for name, digest in wanted.items() if found.get(name) != digest}
    )
    if not changed:
        return
    names = ", ".join(changed[:SHOWN])
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    raise ResumeError(
        f"weights have changed since the interrupted {run} of this output read them: {names}{more}",
        location=folder,
        note="continuing would mix two models",
        hint="undo the change, or start over with `--resume never`",
    )
