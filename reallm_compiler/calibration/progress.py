"""Events of a calibration as progress: chunks of tokens in each pass, tokens of the own text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reallm_compiler.calibration.events import ChunkDone, Event, Sampled
from reallm_compiler.progress import Progress, progress_callback


def with_progress(
    progress: Progress, on_event: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    """What is called with every event: it counts the chunks, and passes the event on."""
    count = progress_callback(progress, "calibrate", "steps")
    sampled = progress_callback(progress is True, "own text", "tokens")

    def emit(event: Event) -> None:
        if isinstance(event, ChunkDone):
            count(event.steps_done, event.steps)
        elif isinstance(event, Sampled):
            sampled(event.tokens_done, event.tokens)
        if on_event is not None:
            on_event(event)

    return emit


def counting_chunks(emit: Callable[[Any], None], done: int) -> Callable[[Any], None]:
    """Counts chunks as they come: several shards may run at once, and each counts its own."""

    def count_chunks(event: Any) -> None:  # noqa: ANN401 - whatever a task sends
        nonlocal done
        if isinstance(event, ChunkDone):
            done += 1
            event = replace(event, steps_done=min(done, event.steps))
        emit(event)

    return count_chunks
