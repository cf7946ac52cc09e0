"""What blocks of an archive of a prepared model have left to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reallm_compiler.finetune import BlockDone, finetune


def tuned_blocks(archive: Path, model: Path, text: Path, output: Path) -> list[BlockDone]:
    """The blocks of an archive, each tuned for an epoch to follow the original's."""
    events: list[Any] = []
    finetune(
        archive,
        model=model,
        text=[text],
        output=output,
        options={"window": 16, "held_out": 2, "stages": ["block"], "block": {"epochs": 1}},
        on_event=events.append,
    )
    return [event for event in events if isinstance(event, BlockDone)]
