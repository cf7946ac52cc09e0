"""Events of a tuning run as progress: steps of Adam, tensors read, matrices written."""

from __future__ import annotations

from collections.abc import Callable

from reallm_compiler.finetune.events import (
    BatchDone,
    BlockDone,
    Event,
    MatricesWritten,
    Started,
    TensorsRead,
)
from reallm_compiler.progress import OnProgress, Progress, progress_callback


def with_progress(
    progress: Progress, on_event: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    """What is called with every event: it counts the steps, and passes the event on."""
    count = progress_callback(progress, "finetune", "steps")
    loads = {
        model: progress_callback(progress is True, f"load the {model}", "tensors")
        for model in ("archive", "original")
    }
    writes = progress_callback(progress is True, "write", "matrices")
    total = each = 0

    def emit(event: Event) -> None:
        nonlocal total, each
        if isinstance(event, TensorsRead):
            loads[event.model](event.done, event.total)
        elif isinstance(event, Started):
            total, each = event.steps, event.block_steps
        elif isinstance(event, BatchDone):
            passes = max(0, event.epoch - 1)
            step = event.batch if event.epoch else 0
            count(event.block * each + passes * event.batches + step, total)
        elif isinstance(event, BlockDone):
            count((event.block + 1) * each, total)
        elif isinstance(event, MatricesWritten):
            writes(event.done, event.total)
        else:
            count(total - event.steps + event.step, total)
        if on_event is not None:
            on_event(event)

    return emit


def tensors_read(model: str, emit: Callable[[Event], None]) -> OnProgress:
    """Progress of reading a model (`archive`, `original`) as events."""
    return lambda done, total: emit(TensorsRead(model=model, done=done, total=total))
